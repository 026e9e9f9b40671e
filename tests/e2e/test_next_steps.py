"""Every line that says what to type next runs in the folder where it was said."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DRY = ("kd", "rl", "eval", "distill-data")  # commands that can check without doing
SMALL = [
    "-o", "rollout.max_prompt_tokens=64", "-o", "rollout.max_tokens=200", "-o", "rollout.max_new_tokens=16",
    "-o", "rollout.max_observation_tokens=96",
]  # fmt: skip


def steps(out: str) -> list[list[str]]:
    """The words of each command that is said to come next."""
    lines = out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("next: "))
    found = [lines[start].removeprefix("next: ")]
    for line in lines[start + 1 :]:
        if not line.startswith("      dgpo "):
            break
        found.append(line.strip())
    return [shlex.split(line) for line in found]


@pytest.fixture
def run_all(dgpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run what an output says to come next, checked only where a command can; the commands that were run."""

    def run(out: str) -> list[str]:
        for program, command, *rest in steps(out):
            assert program == "dgpo"
            monkeypatch.setattr("sys.stdin", io.StringIO(""))
            ended = dgpo(command, *rest, *(["--dry-run"] if command in DRY else []))
            assert ended.status == 0, f"{command} {rest}: {ended.err}"
        return [" ".join(words[1:]) for words in steps(out)]

    return run


def test_from_trajectories_to_an_exported_model(dgpo, run_all, offline, folder: Path) -> None:
    shutil.copytree(offline.folder, folder / "world")
    index, questions = "world/index", "world/world/train.jsonl"
    made = dgpo("distill-data", "--teacher", "world/teacher", "--index", index, "--data", questions, "--keep", "all",
                "--limit", "8", *SMALL)  # fmt: skip
    assert made.status == 0, made.err
    # A student that nobody named would come from the hub, which is not at hand here.
    assert run_all(made.out) == ["models"]
    trained = dgpo(
        "kd", "--student", "world/student", "--teacher", "world/teacher", "--steps", "1", "--batch-size", "4"
    )
    assert trained.status == 0, trained.err
    assert run_all(trained.out) == ["rl --batch-size 128", "chat"]
    asked = dgpo("eval", "--bench", "tinyworld", "--bench-dir", "world/world", "--limit", "2")
    assert asked.status == 0, asked.err
    assert run_all(asked.out) == ["report runs/eval-0001"]
    better = dgpo("rl", "--steps", "1", "--batch-size", "4", "-o", "eval_limit=2", *SMALL)
    assert better.status == 0, better.err
    assert "an episode: " not in better.err, "this is no terminal, and nobody asked for one"
    assert (folder / "runs" / "rl-0001" / "tokenizer").is_dir(), "its episodes can be read while it trains"
    assert run_all(better.out) == ["eval", "chat", "report"]
    again = json.loads(dgpo("eval", "--limit", "1", "--json").out)
    assert list(again["benchmarks"]) == ["tinyworld"]
    exported = dgpo("export", "rl-0001", "my agent")
    assert run_all(exported.out) == ["chat --model my agent"], "one word of the line"


def test_a_student_of_trajectories_alone_goes_on_without_a_teacher(dgpo, run_all, offline, folder: Path) -> None:
    shutil.copytree(offline.folder, folder / "world")
    made = dgpo("distill-data", "--teacher", "world/teacher", "--index", "world/index", "--data",
                "world/world/train.jsonl", "--keep", "all", "--limit", "8", "--out", "made", *SMALL)  # fmt: skip
    assert made.status == 0, made.err
    (folder / ".dgpo" / "workspace.json").unlink()
    trained = dgpo("kd", "--method", "seqkd", "--student", "world/student", "--data", "made", "--steps", "1",
                   "--batch-size", "4")  # fmt: skip
    assert trained.status == 0, trained.err
    assert run_all(trained.out) == ["index --help"]
