"""What `dgpo_cli` offers to Python: the names, their parameters, where they are documented, and a light import."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dgpo_cli

ROOT = Path(__file__).parents[2]
CALLS = {
    "load_model": "(name: 'str', *, device: 'str' = 'auto') -> 'LoadedModel'",
    "open_index": "(location: 'str | Path', *, device: 'str' = 'auto', rerank: 'RerankConfig | None' = None)"
    " -> 'OpenIndex'",
    "read_questions": "(path: 'Path', qa_set: 'str | None' = None, *, answers: 'bool' = True) -> 'list[Question]'",
    "evaluate": "(agent: 'Agent', questions: 'Sequence[Question]', *, samples: 'int' = 1,"
    " progress: 'Progress | None' = None) -> 'Report'",
    "train": "(method: 'str', *, out: 'str | Path', keep: 'int' = 1, progress: 'Progress | None' = None,"
    " **settings: 'Any') -> 'dict[str, Any]'",
}
TYPES = {"Agent", "LoadedModel", "Objective", "OpenIndex", "Question", "Report", "Trajectory"}
LIGHT = """
import json, sys
import dgpo_cli
assert dgpo_cli.__version__ and set(dgpo_cli.__all__)
print(json.dumps([m for m in ("torch", "transformers", "numpy", "typer", "rich") if m in sys.modules]))
"""


def test_the_public_names_are_these() -> None:
    assert set(dgpo_cli.__all__) == CALLS.keys() | TYPES
    assert len(dgpo_cli.__all__) == len(set(dgpo_cli.__all__))
    for name in TYPES:
        assert inspect.isclass(getattr(dgpo_cli, name)), name
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        _ = dgpo_cli.load_models


@pytest.mark.parametrize("name", CALLS)
def test_their_parameters_are_these(name: str) -> None:
    """A parameter may be added with a default; none is renamed or removed without a line in the changelog."""
    assert str(inspect.signature(getattr(dgpo_cli, name))) == CALLS[name]


def test_every_name_has_a_docstring_and_a_place_in_the_documentation() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in dgpo_cli.__all__:
        assert inspect.getdoc(getattr(dgpo_cli, name)), name
        assert f"`{name}" in page, name


def test_importing_the_package_imports_nothing_heavy() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert json.loads(ended.stdout) == []
