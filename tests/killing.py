"""A command killed before each of its file operations, and given again: nothing refused, lost or left over.

What SIGKILL leaves is what its folder holds at that moment: locks are released, open files stay as they are. So one run
of the command gives all of it. Python tells an audit hook of every opening for writing, renaming, removing and making,
and before each the folder is copied. What libraries write without Python (safetensors, faiss) and rows appended to
open files are made to count as well. States with the same contents are one. To them come those in which a file that is
written where it stays holds half of what it gets. In each of them the command is given again, in a forked copy of a
process that has everything imported. Some real kills show that the states are those that a kill leaves.

Not seen are writes of other threads in the middle of an operation, unless a folder that changed while it was copied
tells of them (such are counted), and what a loss of power leaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests import kill_preparations
from tests.folder_contents import contents, difference
from tests.folder_states import State, Store, half_written

ROOT = Path(__file__).parents[1]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RENAME = "os.rename"
_EVENTS = {_RENAME, "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "dgpo.write"}

Each = Callable[[str, str | None], None]  # what is about to happen, and the name that a renaming gives


@dataclass(frozen=True)
class Figures:
    """What one command gave: `operations` of an undisturbed run and what came after the states before them.

    `states` of different content were resumed, `half` of them with a file half written; `kills` were real ones;
    `threaded` operations had another thread beside them, `restless` ones found the folder changing and have no state.
    """

    operations: int
    states: int
    half: int
    kills: int
    threaded: int
    restless: int
    seconds: float
    faults: list[str]


@dataclass(frozen=True)
class Operation:
    """What was about to happen, and the digest of the state that a kill would have left."""

    what: str
    renamed_to: str | None
    state: str | None
    threads: int
    seconds: float  # since the start


def kill_everywhere(
    template: Path,
    arguments: Sequence[object],
    *,
    first: int = 1,
    stride: int = 1,
    half: bool = False,
    unfinished: bool = True,
    kills: int = 1,
    prepare: str = "",
    kept: Path | None = None,
) -> Figures:
    """Run `dgpo ARGUMENTS` in a copy of the folder `template`, and again in the state before every operation.

    That is every `stride`th from `first` on; a negative `first` counts from the last one. With `half`, files are also
    half written; those in unfinished folders if the command goes on with `unfinished` ones. `prepare` names a function
    of kill_preparations that is called before. In the folder `kept` a pass that was stopped goes on where it was.
    """
    order: dict[str, Any] = {"template": str(template), "arguments": [str(a) for a in arguments]}
    order |= {"first": first, "stride": stride, "half": half, "unfinished": unfinished, "kills": kills}
    order["prepare"] = prepare
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        order["place"] = str(kept or Path(place).resolve())
        ended = subprocess.run(
            [sys.executable, __file__, json.dumps(order)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Figures(**json.loads(ended.stdout.splitlines()[-1]))


class Pass:
    """One command in one place. `work` is its folder, `whole` what it leaves undisturbed, `done` what was gone through.

    Each of these has the same path in every run, as records hold it.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._place = Path(order["place"])
        self._work, self._whole, self._output = (self._place / name for name in ("work", "whole", "output"))
        self._recording, self._done = self._place / "recording.jsonl", self._place / "done.jsonl"
        self._imported = self._place / "imported"
        self._store = Store(self._place / "contents")

    def run(self) -> Figures:
        if not self._whole.exists():
            self._record()
        kill_preparations.import_too(self._lines(self._imported))
        operations, states = _read(self._recording)
        whole = contents(self._whole)
        first = self._order["first"] if self._order["first"] > 0 else len(operations) + 1 + self._order["first"]
        chosen = range(first, len(operations) + 1, self._order["stride"])
        todo: dict[str, tuple[str, State]] = {}
        for digest, label, state in self._states(operations, states, chosen):
            todo.setdefault(digest, (label, state))
        done = {row["state"]: row for row in map(json.loads, self._lines(self._done)) if not row["fault"]}
        rows = []
        for number, (digest, (label, state)) in enumerate(todo.items(), start=1):
            if digest not in done:
                done[digest] = self._resumed(digest, label, state, whole)
                with self._done.open("a") as file:
                    file.write(json.dumps(done[digest]) + "\n")
            rows.append(done[digest])
            faulty = sum(bool(row["fault"]) for row in rows)
            print(f"state {number} of {len(todo)}, {faulty} faults", file=sys.stderr, flush=True)
        draw, started = random.Random(0), time.monotonic()
        killed = draw.sample(chosen, min(self._order["kills"], len(chosen)))
        faults = [row["fault"] for row in rows if row["fault"]]
        faults += [fault for number in killed if (fault := self._really_killed(number, operations[number - 1], states))]
        seconds = operations[-1].seconds + sum(row["seconds"] for row in rows) + time.monotonic() - started
        return Figures(
            operations=len(operations),
            states=len(todo),
            half=sum("half of" in row["label"] for row in rows),
            kills=len(killed),
            threaded=sum(operation.threads > 1 for operation in operations),
            restless=sum(operation.state is None for operation in operations),
            seconds=round(seconds, 1),
            faults=faults,
        )

    def _record(self) -> None:
        """One undisturbed run, with the state before every operation."""
        self._begin()
        started = time.monotonic()
        with self._recording.open("w") as file:
            seen: set[str] = set()

            def note(what: str, renamed_to: str | None) -> None:
                state = self._store.take(self._work)
                digest = state.digest if state else None
                seconds = time.monotonic() - started
                row = asdict(Operation(what, renamed_to, digest, threading.active_count(), round(seconds, 3)))
                if state and digest not in seen:
                    seen.add(state.digest)
                    row["entries"] = state.to_json()
                file.write(json.dumps(row) + "\n")
                file.flush()

            status = self._command(note, lambda: self._imported.write_text("\n".join(sys.modules)))
        if status != 0:
            raise SystemExit(f"it does not even work undisturbed: {status}\n{self._output.read_text()}")
        self._work.rename(self._whole)

    def _states(
        self, operations: Sequence[Operation], states: dict[str, State], chosen: range
    ) -> Iterator[tuple[str, str, State]]:
        """(digest, label, state), equal ones more than once."""
        for number in chosen:
            operation = operations[number - 1]
            if operation.state is None:
                continue
            before = states[operation.state]
            yield operation.state, f"{number} ({operation.what})", before
            later = operations[number].state if number < len(operations) else None
            if self._order["half"] and later is not None and later != operation.state:
                halves = half_written(
                    self._store, before, states[later], operation.renamed_to, unfinished=self._order["unfinished"]
                )
                for name, state in halves:
                    yield state.digest, f"{number} ({operation.what}), half of {name}", state

    def _resumed(self, digest: str, label: str, state: State, whole: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        self._store.lay_out(state, self._work)
        if (status := self._command(None)) != 0:
            fault = f"{label}: then ended with {status}: {self._output.read_text()[-500:]}"
        else:
            found = difference(whole, contents(self._work))
            fault = f"{label}: {found}" if found else ""
        return {"state": digest, "label": label, "fault": fault, "seconds": round(time.monotonic() - started, 2)}

    def _really_killed(self, number: int, operation: Operation, states: dict[str, State]) -> str:
        """What a process that dies there leaves beside the state that was copied, or ""."""
        self._begin()
        count = 0

        def die(what: str, renamed_to: str | None) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        if (status := self._command(die)) != -signal.SIGKILL:
            return f"{number}: ended with {status} before it could be killed: {self._output.read_text()[-500:]}"
        left = self._store.take(self._work)
        if left is None or operation.state is None:
            return ""
        differing = self._store.alike(states[operation.state], left)
        return f"{number} ({operation.what}): a kill leaves something else: {differing}" if differing else ""

    def _begin(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._order["template"], self._work, symlinks=True)

    def _command(self, each: Each | None, at_end: Callable[[], object] = bool) -> int:
        return _forked(lambda: _dgpo(self._work, self._order["arguments"], self._output, each, at_end))

    @staticmethod
    def _lines(file: Path) -> list[str]:
        return file.read_text().splitlines() if file.exists() else []


def _read(recording: Path) -> tuple[list[Operation], dict[str, State]]:
    operations, states = [], {}
    with recording.open() as file:
        for row in map(json.loads, file):
            if entries := row.pop("entries", None):
                states[row["state"]] = State.from_json(entries)
            operations.append(Operation(**row))
    return operations, states


def _forked(work: Callable[[], NoReturn]) -> int:
    """Exit status of `work` in a copy of this process, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _dgpo(
    folder: Path, arguments: Sequence[str], output: Path, each: Each | None, at_end: Callable[[], object]
) -> NoReturn:
    """The command in `folder`, in a process that ends with it; `each` is called before every operation on a file."""
    told = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(told, stream)
    os.chdir(folder)
    from dgpo_cli.cli import main as dgpo

    if each is not None:
        _watch(str(folder), each)
    status: Any = 0
    try:
        dgpo(list(arguments))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 98
    sys.stdout.flush()
    sys.stderr.flush()
    at_end()
    os._exit(status or 0)


def _watch(folder: str, each: Each) -> None:
    turn = threading.RLock()  # another thread waits with its operation until the state before this one is taken

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(given[2], int) or not given[2] & _WRITES:
                return
        elif event not in _EVENTS:
            return
        if not isinstance(given[0], str | bytes | os.PathLike):
            return
        path = str(Path.cwd() / os.fsdecode(given[0]))
        # A name inside an open folder is relative to that; rmtree works so, and nothing else here.
        if path != folder and not path.startswith(f"{folder}/"):
            return
        aim = str(Path.cwd() / os.fsdecode(given[1])).removeprefix(f"{folder}/") if event == _RENAME else None
        with turn:
            each(f"{event} {path.removeprefix(f'{folder}/')}", aim)

    sys.addaudithook(hook)


def sources() -> str:
    """A digest of the program and of what tests it this way: what a kept pass was made with."""
    digest = hashlib.blake2b(digest_size=8)
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in sorted([*files, *(ROOT / "tests").glob("*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def main(order: dict[str, Any]) -> None:
    kill_preparations.import_beforehand(order["arguments"])
    if order["prepare"]:
        getattr(kill_preparations, order["prepare"])()
    print(json.dumps(asdict(Pass(order).run())))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
