"""Commands that compute nothing start without the libraries that compute."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "accelerate", "datasets", "faiss", "bitsandbytes", "matplotlib")
PROBE = """
import json, sys
from dgpo_cli.cli import main
try:
    main({argv!r})
except SystemExit as ended:
    status = ended.code
print(json.dumps([status, sorted(m for m in {heavy!r} if m in sys.modules)]), file=sys.stderr)
"""
HELP_S, START_S = 0.35, 0.8  # of CPU, user and system
SLACK = 1.5  # other work on the same core slows caches down; one import of torch takes four seconds
COMMANDS = {
    "search": "search Vesapo --index {index} -k 2 --json",
    "plan": "plan qwen3b-0.5b-24gb",
    "plan-local": "plan {recipe} --gpu 24GB",
    "recipes": "recipes",
    "runs": "runs",
    "models": "models",
    "list": "rl --list",
    "describe": "kd --describe taid",
    "distill-data": "distill-data --teacher {teacher} --index {index} --data {train} --device cpu --dry-run",
    "kd": "kd --student {student} --teacher {teacher} --data {trajectories} --device cpu --dry-run",
    "opd": "kd --method opd --student {student} --teacher {teacher} --data {trajectories} --index {index} --device cpu"
    " --dry-run",
    "rl": "rl --student {student} --teacher {teacher} --index {index} --data {train} --batch-size 4 --device cpu"
    " --dry-run",
    "eval": "eval --model {student} --index {index} --bench tinyworld --bench-dir {world} --device cpu --dry-run",
    "quickstart": "quickstart --dry-run",
    "reproduce": "reproduce --dry-run",
}


@pytest.fixture(scope="module")
def places(offline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.offline import write_one_trajectory

    folder = tmp_path_factory.mktemp("start")
    recipe = folder / "own.toml"
    recipe.write_text(f'[recipe]\ntitle = "x"\ncard = "24GB"\n[kd]\nstudent = "{offline.student}"\n'
                      f'teacher = "{offline.teacher}"\n')  # fmt: skip
    return {
        "index": offline.index, "teacher": offline.teacher, "student": offline.student, "recipe": recipe,
        "train": offline.questions("train"), "world": offline.folder / "world",
        "trajectories": write_one_trajectory(offline, folder / "t.jsonl"),
    }  # fmt: skip


def started(argv: list[str], folder: Path) -> tuple[int, list[str], float, str]:
    """Status, heavy modules, seconds of CPU, and what was said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    probe = PROBE.format(argv=argv, heavy=HEAVY)
    ended = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False, cwd=folder, env=dict(os.environ)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    status, heavy = json.loads(ended.stderr.splitlines()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return status or 0, heavy, seconds, ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_computes_nothing_starts_light(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    argv = COMMANDS[name].format(**places).split()
    status, heavy, seconds, said = started(argv, tmp_path)
    assert (status, heavy) == (0, []), said
    assert seconds < START_S * SLACK, f"{seconds:.2f} s of CPU"
    assert not (tmp_path / "runs").exists()


def test_help_starts_at_once(tmp_path: Path) -> None:
    _, heavy, seconds, _ = started(["--help"], tmp_path)
    assert heavy == [] and seconds < HELP_S * SLACK


def test_chat_without_a_model_says_so_at_once(tmp_path: Path) -> None:
    status, heavy, seconds, said = started(["chat", "-q"], tmp_path)
    assert (status, heavy) == (1, []) and said.startswith("error: no model was given")
    assert seconds < START_S * SLACK
