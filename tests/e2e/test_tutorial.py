"""The tutorials: every command of them runs, and prints the lines that it shows, figures aside."""

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
PASSAGES = Path(__file__).parents[3] / "shared" / "data"


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
    lines = [" ".join(re.sub(r"[\d.,]*\d", "#", line).split()) for line in text.splitlines()]
    return [re.sub(r"# (?:h|min|s)\b(?: # (?:min|s)\b)?", "# s", line) for line in lines]


def missing(shown: list[str], printed: str) -> str | None:
    """The first line that is shown and does not come in its turn."""
    lines = iter(masked(printed))
    return next((line for line in masked("\n".join(shown)) if not any(line == other for other in lines)), None)


def test_the_comparison_sees_a_line_that_is_not_printed() -> None:
    assert missing(["built in 4.9 s: 800"], "x\nbuilt  in 12 s: 1,200\n") is None
    assert missing(["built in 4.9 s: 800"], "made in 12 s: 1,200\n") == "built in # s: #"
    assert missing(["8 steps in 3 min 12 s"], "8 steps in 41 s\n") is None
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

    untrained(folder / "model")
    for command, shown in steps((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if command == "dgpo learn docs":
            monkeypatch.setattr("dgpo_cli.offline.project.shipped", small)
        check(dgpo, command, shown)


def untrained(folder: Path) -> None:
    """A tiny model that knows no agent's text."""
    tokenizer = bpe_tokenizer(chat=True)
    save_model(folder, qwen(len(tokenizer), positions=2048), tokenizer, DEFAULT)
    (folder / "protocol.json").unlink()


def check(dgpo: Any, command: str, shown: list[str]) -> None:
    ended = dgpo(*shlex.split(command)[1:])
    assert ended.status == 0, f"{command}: {ended.err}"
    assert missing(shown, ended.err + ended.out) is None, f"{command} printed:\n{ended.err}{ended.out}"


@pytest.mark.slow
@pytest.mark.skipif(not (PASSAGES / "corpus_hotpotqa.jsonl.gz").is_file(), reason="the passages are not here")
def test_the_tutorial_about_real_passages_runs(dgpo: Any, folder: Path) -> None:
    """With a tiny model in the place of SmolLM2-135M, which needs more tokens for the same text."""
    for name in ("corpus_hotpotqa.jsonl.gz", "hotpotqa.jsonl.gz"):
        shutil.copy(PASSAGES / name, folder / name)
    untrained(folder / "model")
    page = (DOCS / "tutorial-passages.md").read_text(encoding="utf-8")
    assert len(steps(page)) == 8
    room = "-o rollout.max_prompt_tokens=600 -o rollout.max_tokens=2048"
    for command, shown in steps(page):
        command = re.sub(r"max_observation_tokens=\d+", f"max_observation_tokens=600 {room}", command)
        check(dgpo, command.replace("smollm2-135m", "model"), shown)
