"""A command killed before each of its file operations in turn, and given again: nothing refused, lost or left over.

As a script it imports everything once and runs the command in forked copies of itself. Python tells an audit hook of
every opening, renaming, removing and making; a copy counts them, and at the one asked for sends itself SIGKILL. What
libraries write without Python (safetensors, faiss) and rows appended to open files are made to count as well.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

# What differs between two undisturbed runs, by name of a field.
_VOLATILE = re.compile(r"seconds|per_second|created|finished|^at$|versions|git_commit|gib|memory")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "dgpo.write"}
_LAST_BITS = 1e-5  # of a log-probability in single precision


@dataclass(frozen=True)
class Figures:
    """`operations` of an undisturbed run, `kills` that were made, and what went wrong after which."""

    operations: int
    kills: int
    seconds: float
    faults: list[str]


def kill_everywhere(
    template: Path, arguments: Sequence[object], *, first: int = 1, stride: int = 1, prepare: str = ""
) -> Figures:
    """Run `dgpo ARGUMENTS` in copies of the folder `template`, killed at every `stride`th operation from `first` on.

    A negative `first` counts from the last one. `prepare` names a function of this file that is called before.
    """
    order = {"template": str(template), "arguments": [str(a) for a in arguments]}
    order |= {"first": first, "stride": stride, "prepare": prepare}
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, __file__, json.dumps(order)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return Figures(**json.loads(ended.stdout.splitlines()[-1]))


def main(order: dict[str, Any]) -> None:
    started = time.monotonic()
    _import_beforehand(order["arguments"])
    if order["prepare"]:
        globals()[order["prepare"]]()
    faults: list[str] = []
    kills = 0
    with tempfile.TemporaryDirectory() as place:
        work, output = Path(place).resolve() / "work", Path(place).resolve() / "output"

        def begin() -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(order["template"], work)

        def run(die_at: int) -> int:
            return _forked(lambda: _command(work, order["arguments"], output, die_at))

        begin()
        status = run(0)
        if status != 0:
            raise SystemExit(f"it does not even work undisturbed: {status}\n{output.read_text()}")
        whole = contents(work)
        operations = int(output.with_suffix(".count").read_text())
        first = order["first"] if order["first"] > 0 else operations + 1 + order["first"]
        for number in range(first, operations + 1, order["stride"]):
            begin()
            kills += 1
            if (status := run(number)) != -signal.SIGKILL:
                faults.append(f"{number}: ended with {status} before it could be killed: {output.read_text()[-500:]}")
                continue
            at = output.with_suffix(".count").read_text()
            if (status := run(0)) != 0:
                faults.append(f"{number} ({at}): then ended with {status}: {output.read_text()[-500:]}")
            elif differing := difference(whole, contents(work)):
                faults.append(f"{number} ({at}): {differing}")
            print(f"kill {number} of {operations}, {len(faults)} faults", file=sys.stderr, flush=True)
    print(json.dumps(asdict(Figures(operations, kills, round(time.monotonic() - started, 1), faults))))


def contents(folder: Path) -> dict[str, Any]:
    """Every file by its name, without what depends on the clock; records by their keys, not by their order."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".jsonl":
            rows = [_plain(json.loads(line)) for line in path.read_bytes().splitlines()]
            if all(isinstance(row, dict) for row in rows):
                rows.sort(key=lambda row: (row.get("key", ""), row.get("step", 0), sorted(row)))
            found[name] = rows
        elif path.suffix == ".json":
            value = _plain(json.loads(path.read_bytes()))
            if path.name in ("state.json", "manifest.json"):  # sealed with the seconds in it
                value.pop("sha256")
            found[name] = value
        elif path.suffix == ".png":  # over seconds
            found[name] = "picture"
        elif path.suffix == ".md":
            found[name] = re.sub(r"[\d.]+ s\b", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def difference(whole: dict[str, Any], found: dict[str, Any]) -> str:
    """The first that differs, or ""."""
    if left := sorted(found.keys() - whole.keys()):
        return f"left over: {left[:5]}"
    if missing := sorted(whole.keys() - found.keys()):
        return f"missing: {missing[:5]}"
    changes = (f"{name}: {change}" for name, value in whole.items() if (change := _change(value, found[name])))
    return next(changes, "")


def _change(one: Any, other: Any, place: str = "") -> str:
    """The first place where two values differ.

    A log-probability may by its last bits, which depend on the episodes that ran beside its own; tokens may not.
    """
    if one == other or ("logprob" in place and math.isclose(one, other, abs_tol=_LAST_BITS)):
        return ""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for k in one if (found := _change(one[k], other[k], f"{place}.{k}"))), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for n, (a, b) in pairs if (found := _change(a, b, f"{place}[{n}]"))), "")
    return f"{place} was {str(one)[:200]}, is {str(other)[:200]}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not _VOLATILE.search(k)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _forked(work: Callable[[], NoReturn]) -> int:
    """Exit status of `work` in a copy of this process, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _command(folder: Path, arguments: Sequence[str], output: Path, die_at: int) -> NoReturn:
    """The command in `folder`; `die_at` 0 is never. The number and name of its last operation go beside `output`."""
    told = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(told, stream)
    os.chdir(folder)
    count = _watch(str(folder), output.with_suffix(".count"), die_at)
    from dgpo_cli.cli import main as dgpo

    status: Any = 0
    try:
        dgpo(list(arguments))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 98
    operations = count()
    sys.stdout.flush()
    sys.stderr.flush()
    output.with_suffix(".count").write_text(str(operations))
    os._exit(status or 0)


def _watch(folder: str, record: Path, die_at: int) -> Callable[[], int]:
    number = 0
    file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal number
        if event == "open":
            if not isinstance(given[2], int) or not given[2] & _WRITES:
                return
        elif event not in _EVENTS:
            return
        if not isinstance(given[0], str | bytes | os.PathLike):
            return
        path = str(Path.cwd() / os.fsdecode(given[0]))
        # A name inside an open folder is relative to that; rmtree works so, and nothing else here.
        if not path.startswith(folder):
            return
        number += 1
        if number == die_at:
            os.write(file, f"{event} {path.removeprefix(folder + '/')}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: number


# What commands import where they need it.
_OF_BM25 = (
    "bm25s",
    "dgpo_cli.commands.index.command",
    "dgpo_cli.retrieval.lexical.bm25",
    "dgpo_cli.retrieval.index.build",
)
_OF_ALL = (
    *(
        "faiss",
        "matplotlib.figure",
        "plotext",
        "safetensors.torch",
        "torch",
        *_OF_BM25,
        "dgpo_cli.retrieval.dense.retriever",
    ),
    *("transformers.models.bert.modeling_bert", "transformers.models.qwen2.modeling_qwen2", "dgpo_cli.commands.kd"),
    *("dgpo_cli.evaluation.suite", "dgpo_cli.training.teacher.distill_data", "dgpo_cli.training.kd"),
    *("dgpo_cli.offline.quickstart", "dgpo_cli.training.rl", "dgpo_cli.viewing.curves"),
)


def _import_beforehand(arguments: Sequence[str]) -> None:
    """So that a copy need not; and no thread yet, which would not be copied. Writers tell of what they write."""
    models = "bm25" not in arguments
    for name in _OF_ALL if models else _OF_BM25:
        importlib.import_module(name)
    if models:
        import faiss
        import safetensors.torch
        import torch

        torch.set_num_threads(1)
        safetensors.torch.save_file = _told(safetensors.torch.save_file, 1)
        faiss.write_index = _told(faiss.write_index, 1)
    from dgpo_cli.core.records import RecordFile

    append = RecordFile.append

    def told(self: Any, row: Any) -> None:
        sys.audit("dgpo.write", str(self.path))
        append(self, row)

    RecordFile.append = told


def _told(write: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A writer that says so before; its argument number `place` is the file."""

    def told(*given: Any, **named: Any) -> Any:
        sys.audit("dgpo.write", str(given[place]))
        return write(*given, **named)

    return told


def small_quickstart() -> None:
    """Few steps of everything in one process over a small world.

    Its clock goes on by being read, as one row has another's time.
    """
    from dgpo_cli.offline import quickstart, stages
    from dgpo_cli.offline.world.world import WorldSize, build_world

    size = WorldSize(demonstrations=20, train=20, validation=10, test=10)
    stages.build_world = lambda seed: build_world(seed, size)
    settings = quickstart.recipe()
    settings["world"] |= {"test_questions": 6, "validation_questions": 4, "demonstrations": 10}
    settings["distill-data"] |= {"questions": 8, "keep": "all"}
    settings["teacher"] |= {"steps": 2, "eval_every": 2}
    settings["student"] |= {"steps": 2, "eval_every": 2}
    settings["kd"] |= {"steps": 2, "eval_every": 2}
    settings["rl"] |= {"steps": 2, "batch_size": 4, "eval_every": 1, "save_every": 1, "eval_limit": 4}
    quickstart.recipe = lambda: settings
    os.cpu_count = lambda: 1
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 1 / 1024  # a sum of which is exact, so that a step takes as long wherever a run went on from
        return now

    time.perf_counter = perf_counter


def leave_leftovers() -> None:
    """Break what is tested, to see that the test sees it."""
    from dgpo_cli.core import folders

    folders.sweep = lambda _folder: None


def small_shards() -> None:
    """Several shards of a small corpus."""
    from dgpo_cli.retrieval.dense import vectors

    vectors.SHARD = 2


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
