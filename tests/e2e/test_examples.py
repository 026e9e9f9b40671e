"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_from_python(offline, searcher, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("from_python").main(
        str(searcher), str(offline.teacher), str(offline.index), str(offline.questions("train")), str(folder / "out")
    )
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if not line.startswith("searched")] == [
        "question", "answer", "before", "trained", "after",
    ]  # fmt: skip
    first = said[0].removeprefix("question: ").split()[0]
    assert said[1].startswith(f"searched: '{first} "), "the student has learned to search for the question"
    assert "trained:  1 step" in "\n".join(said) and (folder / "out" / "best" / "model.safetensors").is_file()
