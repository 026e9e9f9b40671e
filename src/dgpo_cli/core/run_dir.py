"""Run folders: resolved config, versions, seed, metrics, resumable state, best weights.

runs/<command>-NNNN/
  run.json       command, status, config digest, seed, versions, git commit, times, result
  config.toml    the resolved config; `dgpo <command> --config` repeats the run
  metrics.jsonl  one object per logged step; with --report-to the same in tensorboard/ or wandb/
  state/  best/  validation.jsonl  written by training; rollback/ while a guarded run may go back
  rollouts.jsonl written by rl: episodes of its steps
  .lock          there while a process works in it, see core/locks.py
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dgpo_cli.core import folders, shell
from dgpo_cli.core.locks import Lock, is_held, lock_inside
from dgpo_cli.core.places import portable
from dgpo_cli.core.records import dump_line, to_json, write_atomic, write_jsonl_atomic
from dgpo_cli.core.run_config import CONFIG_FILE, differing, remark, restore_config, write_config
from dgpo_cli.core.run_identity import Work
from dgpo_cli.core.run_metrics import read_metrics
from dgpo_cli.core.run_names import find_run
from dgpo_cli.core.run_record import DISCARDED, read_run, require_command
from dgpo_cli.core.versions import git_commit, versions
from dgpo_cli.errors import BusyError, ConfigError

_WITH_CONFIG = ("make-questions", "distill-data", "kd", "rl")  # commands that have the option
_WHEN_BUSY = "wait for it, or start a second run with --fresh and, where you gave --out, in another folder"


class RunDir:
    """One run. Open it with `RunDir.open`; it is locked until `close` or the end of the process."""

    listener: Callable[[int, Mapping[str, Any]], None] | None = None  # receives everything that is logged
    left: str = ""  # which unfinished run of the same command a new one does not go on with, and why

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        """Lock the folder, made if it does not exist, and take away what killed processes left unfinished in it."""
        self.path, self.resumed = path, resumed
        self._lock = Lock.inside(path, hint=_WHEN_BUSY)
        folders.sweep(path)

    @classmethod
    def open(
        cls,
        command: str,
        config: Mapping[str, Any],
        *,
        root: Path = Path("runs"),
        out: Path | None = None,
        resume: Path | None = None,
        fresh: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> RunDir:
        """The newest unfinished run with this config goes on; otherwise a new one starts.

        `out` names the folder, `resume` a run that must go on, `fresh` always starts another run. `inputs` maps paths
        in the config to digests of their contents; they count as part of the config. Raises ConfigError when `resume`
        or `out` holds a run of another config, or another process works in it.
        """
        require_run_place(out, resume, fresh=fresh, root=root)
        work = Work(command, config, inputs or {})
        if resume is not None:
            return cls._resume(find_run(resume, root) or resume, work)
        if out is not None:
            return cls._at(out, work, fresh)
        before = [] if fresh else list_runs(root)
        for path in reversed(before):
            if read_run(path)["digest"] == work.digest and not _is_over(path):
                return cls(path, resumed=True)._restored(work)
        run = cls._claim(root, command)._begin(work)
        run.left = _left(before, work)
        return run

    @classmethod
    def _at(cls, out: Path, work: Work, fresh: bool) -> RunDir:
        """Open the run in `out`: resume it, create it, or replace it."""
        run = cls(out)
        try:
            _refuse_foreign(out)  # again, since another process may have had the folder until now
            status = read_run(out)["status"] if (out / "run.json").is_file() and not fresh else DISCARDED
            if status == DISCARDED:
                return run._begin(work)
            require_same(out, work)
            run.resumed = True
            run._restored(work)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def _claim(cls, root: Path, command: str) -> RunDir:
        """A folder <command>-NNNN of its own: the last one, if a start that was killed left nothing in it, or a new."""
        names = (p.name.rpartition("-")[2] for p in root.glob(f"{command}-*"))
        number = max((int(name) for name in names if name.isdecimal()), default=1)
        while True:
            path = root / f"{command}-{number:04d}"
            with suppress(BusyError):
                if not _is_used(path):
                    run = cls(path)
                    if not _is_used(path):
                        return run
                    run.close()  # another process was faster, and is done
            number += 1

    @classmethod
    def _resume(cls, path: Path, work: Work) -> RunDir:
        _require_run(path)
        require_same(path, work)
        return cls(path, resumed=True)._restored(work)

    def _restored(self, work: Work) -> RunDir:
        restore_config(self.path, work)
        return self

    def _begin(self, work: Work) -> RunDir:
        """Write the initial state of the run, replacing one that may be there; atomic, also under a kill."""
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        if (self.path / "run.json").is_file():
            mark = {"command": work.command, "status": DISCARDED, "digest": "", "created": begun}
            write_atomic(self.path / "run.json", json.dumps(mark) + "\n")
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != lock_inside(self.path) and path.name != "run.json":
                path.unlink()
        write_config(self.path, work)
        record = {
            "command": work.command,
            "status": "running",
            "digest": work.digest,
            "seed": work.config.get("seed"),
            "created": begun,
            "versions": versions(),
            "git_commit": git_commit(),
        } | ({"inputs": portable(dict(work.inputs))} if work.inputs else {})
        write_atomic(self.path / "run.json", to_json(record, indent=1, ensure_ascii=True) + "\n")
        return self

    @property
    def record(self) -> dict[str, Any]:
        return read_run(self.path)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        known = {name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)}
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(dump_line({"step": step} | known))
        if self.listener is not None:
            self.listener(step, known)

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def cut_metrics(self, after_step: int) -> None:
        """Drop what a killed run logged beyond its last saved step, a torn last line included."""
        if (self.path / "metrics.jsonl").is_file():
            rows = [row for row in read_metrics(self.path) if row["step"] <= after_step]
            write_jsonl_atomic(self.path / "metrics.jsonl", rows)

    def remove(self, path: Path) -> None:
        """Delete a folder of the run, if it is there."""
        folders.remove(path)

    def note(self, **facts: Any) -> None:
        """Add entries to run.json that the config does not hold."""
        write_atomic(self.path / "run.json", to_json(self.record | facts, indent=1, ensure_ascii=True) + "\n")

    def finish(self, result: Mapping[str, Any]) -> None:
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.note(status="finished", finished=ended, result=dict(result))

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FollowedRun(RunDir):
    """A run that another process writes: this one reads its states, and leaves no trace of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.resumed = path, True

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def cut_metrics(self, after_step: int) -> None:
        pass

    def remove(self, path: Path) -> None:
        pass

    def note(self, **facts: Any) -> None:
        pass

    def finish(self, result: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def require_run_place(out: Path | None, resume: Path | None, *, fresh: bool, root: Path = Path("runs")) -> None:
    """What `RunDir.open` refuses of these whatever the config is. Cheap, and makes nothing. Raises ConfigError."""
    if resume is not None:
        if out is not None or fresh:
            raise ConfigError(f"--resume {resume} beside {'--fresh' if fresh else '--out'}", hint="give one of them")
        _require_run(find_run(resume, root) or resume)
        return
    place = out or root
    folders.require_place(place)
    if out is not None:
        _refuse_foreign(out)
        if (out / "run.json").is_file() and not fresh and _is_over(out):
            raise ConfigError(f"{out} holds a finished run", hint="give another --out, or --fresh to replace it")


def list_runs(root: Path = Path("runs")) -> list[Path]:
    """Run folders, oldest first. Raises InputError for a damaged one."""
    found = [p.parent for p in root.glob("[!.]*/run.json")]
    return sorted(found, key=lambda p: (read_run(p)["created"], p.name))


def is_locked(path: Path) -> bool:
    """True if a process works in the run at this moment."""
    return is_held(lock_inside(path))


def _is_over(path: Path) -> bool:
    """True if run and command finished; a lock file without a holder is of a command killed at its end."""
    return bool(read_run(path)["status"] == "finished") and not lock_inside(path).is_file()


def _left(before: Sequence[Path], work: Work) -> str:
    """Of runs, oldest first: whether the last of this command was ended early, and has other settings or inputs."""
    newest = next((path for path in reversed(before) if read_run(path)["command"] == work.command), None)
    if newest is None or read_run(newest)["status"] != "running" or is_locked(newest):
        return ""
    return f"{newest} is unfinished and stays as it is: {remark(newest, read_run(newest), work)}"


def _require_run(path: Path) -> None:
    if not (path / "run.json").is_file():
        raise ConfigError(f"{path} is not a run folder", hint="`dgpo runs` lists them")


def require_same(path: Path, work: Work, *, partly: bool = False) -> None:
    """Raises ConfigError, which names the differences, where the run in `path` does other work."""
    hint = "give one of this command (`dgpo runs` lists them), or another --out"
    record = require_command(path, work.command, hint=hint)
    if record["digest"] != work.digest and (why := differing(path, record, work, partly=partly)):
        raise ConfigError(
            f"the run {path} has other settings than this command: {why}",
            hint=f"repeat its settings: {shell.command('--config', path / 'config.toml')}"
            if work.command in _WITH_CONFIG
            else "give the options that it began with, or start anew with another --out, or with --fresh",
        )


def _refuse_foreign(path: Path) -> None:
    if (path / "run.json").is_file():
        return
    if _is_used(path):
        raise ConfigError(f"{path} exists and is no run folder", hint="give --out a folder that does not exist yet")
    # A run inside another one is in no list of runs, and goes when that one is replaced or removed.
    for around in path.resolve().parents:
        if (around / "run.json").is_file() and (around / CONFIG_FILE).is_file():
            raise ConfigError(f"{path} lies in the run {around.name}", hint="give an --out beside it, or outside it")


def _is_used(path: Path) -> bool:
    """True if the folder holds more than a run killed during its creation would leave."""
    if not path.exists():
        return False
    return not path.is_dir() or any(
        p.name not in (lock_inside(path).name, "config.toml") and not folders.is_unfinished(p) for p in path.iterdir()
    )
