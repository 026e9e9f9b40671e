"""docs/tutorial.md: every command of it runs, and prints the lines that it shows, figures aside."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.core import recipes
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.load import save_model

DOCS = Path(__file__).parents[2] / "docs"


def steps(page: str) -> list[tuple[str, list[str]]]:
    """Each command of the console blocks, with the lines that are shown below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def masked(text: str) -> list[str]:
    """Lines without their figures and without repeated blanks; seconds are sometimes minutes."""
    return [" ".join(re.sub(r"[\d.,]*\d", "#", line).split()) for line in text.splitlines()]


def missing(shown: list[str], printed: str) -> str | None:
    """The first line that is shown and does not come in its turn."""
    lines = iter(masked(printed))
    return next((line for line in masked("\n".join(shown)) if not any(line == other for other in lines)), None)


def test_the_comparison_sees_a_line_that_is_not_printed() -> None:
    assert missing(["built in 4.9 s: 800"], "x\nbuilt  in 12 s: 1,200\n") is None
    assert missing(["built in 4.9 s: 800"], "made in 12 s: 1,200\n") == "built in # s: #"
    assert missing(["b", "a"], "a\nb\n") == "a", "in another order"
    assert len(steps((DOCS / "tutorial.md").read_text(encoding="utf-8"))) == 8


@pytest.mark.slow
def test_the_tutorial_runs(dgpo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of SmolLM2-135M, and few of its steps."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("*.py"))
    shipped = recipes.shipped

    def small(name: str) -> dict[str, Any]:
        settings = shipped(name)
        settings["world"] |= {"student": str(folder / "model"), "quick_questions": 4}
        settings["questions"] |= {"passages": 60}
        settings["rollout"] |= {"max_new_tokens": 160, "max_tokens": 2048, "max_prompt_tokens": 2048}
        settings["demonstrations"] |= {"questions": 12}
        return settings

    for command, shown in steps((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if command == "dgpo learn docs":
            tokenizer = bpe_tokenizer(chat=True)
            save_model(folder / "model", qwen(len(tokenizer), positions=2048), tokenizer, DEFAULT)
            (folder / "model" / "protocol.json").unlink()
            monkeypatch.setattr("dgpo_cli.offline.own_documents.shipped", small)
        ended = dgpo(*shlex.split(command)[1:])
        assert ended.status == 0, f"{command}: {ended.err}"
        assert missing(shown, ended.err + ended.out) is None, f"{command} printed:\n{ended.err}{ended.out}"
