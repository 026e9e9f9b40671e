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
# CPU seconds in units of what every command needs, so that a slower processor changes nothing: on the machine of
# docs/benchmarks.md the unit is 0.17 s, `--help` 2.2 units, `search` 5; one import of torch takes 20.
UNIT = "import typer, rich.console, pydantic"
HELP_UNITS, START_UNITS = 3.5, 8.0
TRIES = 3  # work on the same core makes some of them slow
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
    "learn": "learn {world} --student {student} --dry-run",
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


def timed(code: str, folder: Path) -> tuple[float, str]:
    """Seconds of CPU of an interpreter that runs `code` and counts no coverage, and what it wrote to its stderr."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COV_CORE", "COVERAGE"))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder, env=env
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended.stderr


def started(argv: list[str], folder: Path, allowed: float) -> tuple[int, list[str], str]:
    """Status, heavy modules and what was said; fails where every start takes more than `allowed` units of CPU."""
    probe = PROBE.format(argv=argv, heavy=HEAVY)
    took = []
    for _ in range(TRIES):
        (unit, _), (seconds, said) = timed(UNIT, folder), timed(probe, folder)
        took.append(seconds / unit)
        if took[-1] <= allowed:
            break
    assert min(took) <= allowed, f"units of CPU: {took}"
    status, heavy = json.loads(said.splitlines()[-1])
    return status or 0, heavy, said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_computes_nothing_starts_light(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    argv = COMMANDS[name].format(**places).split()
    status, heavy, said = started(argv, tmp_path, START_UNITS)
    assert (status, heavy) == (0, []), said
    assert not (tmp_path / "runs").exists()


def test_help_starts_at_once(tmp_path: Path) -> None:
    _, heavy, _ = started(["--help"], tmp_path, HELP_UNITS)
    assert heavy == []


def test_chat_without_a_model_says_so_at_once(tmp_path: Path) -> None:
    status, heavy, said = started(["chat", "-q"], tmp_path, START_UNITS)
    assert (status, heavy) == (1, []) and said.startswith("error: no model given")


REFUSED = {
    "serve a model that is none": "serve --model nosuch --index {index}",
    "serve an index that is none": "serve --index nosuch",
    "serve an agent over an index that is none": "serve --model {student} --index nosuch",
    "serve with a setting that is none": "serve --index {index} -o nosuch=1",
    "mcp": "mcp --model nosuch --index {index}",
    "export a model that is none": "export nosuch out",
    "export into a folder of something else": "export {student} {world}",
    "export in a dtype that is none": "export {student} out --dtype float8",
    "export in a form that is none": "export {student} out --gguf --quantize q3",
    "search with a reranker that is none": "search x --index {index} -o rerank.model=nosuch",
    "index with an encoder that is none": "index {world}/corpus.jsonl --out i --retriever dense --encoder nosuch",
    "quickstart over a folder of something else": "quickstart --out {taken}",
    "learn into a folder of something else": "learn {world} --out {taken}",
    "reproduce into a folder of something else": "reproduce --out {taken}",
    "a dry run of it": "learn {world} --out {taken} --dry-run",
    "chat": "chat --model {student} --index nosuch",
    "audit": "audit {world}/test.jsonl --index nosuch",
    "report": "report nosuch",
    "make-questions": "make-questions {world} --teacher nosuch",
}
PROBE_ALL = """
import json, sys
from dgpo_cli.cli import main
for argv in {every!r}:
    try:
        main(argv)
        status = 0
    except SystemExit as ended:
        status = ended.code
    print(json.dumps([status, sorted(m for m in {heavy!r} if m in sys.modules)]), file=sys.stderr)
"""


def test_what_is_refused_is_refused_before_a_library_that_computes_is_imported(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """One process after the other is what a user starts; one for all of them finds the first that imports too much."""
    for taken in ("taken", "taken/fair/seed-0"):
        (tmp_path / taken / "runs").mkdir(parents=True)
    every = [line.format(**places, taken=tmp_path / "taken").split() for line in REFUSED.values()]
    _, said = timed(PROBE_ALL.format(every=every, heavy=HEAVY), tmp_path)
    found = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(found) == len(errors) == len(REFUSED), said
    assert dict(zip(REFUSED, found, strict=True)) == {name: [1, []] for name in REFUSED}, said
    assert not (tmp_path / "out").exists()
