"""Defaults that one command leaves for the next, with their origin: `.dgpo/workspace.json` of the folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dgpo_cli.core import folders
from dgpo_cli.core.locks import Lock, lock_inside
from dgpo_cli.core.places import portable
from dgpo_cli.core.records import to_json, write_atomic
from dgpo_cli.core.schema import map_of, read_record, record, text

# What is remembered; `model` is what eval, chat and export take, `student` where rl starts,
# `bench` what eval asks, from the files in `bench_dir`.
KEYS = ("index", "questions", "trajectories", "teacher", "student", "model", "last_run", "bench", "bench_dir")
_log = logging.getLogger(__name__)
_WAIT_S = 10.0  # others hold it for a moment

_WORKSPACE = map_of(record({"value": text(empty=False), "by": text(), "at": text()}))


@dataclass(frozen=True, slots=True)
class Resolved:
    value: str | None
    origin: str  # a phrase for the user


class Workspace:
    """The memory of one working folder."""

    def __init__(self, root: Path = Path(".dgpo")) -> None:
        self.path = root / "workspace.json"

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {}
        content: dict[str, Any] = read_record(self.path, _WORKSPACE, hint=f"delete {self.path}")
        return content

    def remember(self, *, by: str, **values: str | Path | None) -> None:
        """Keep values under KEYS; None forgets one. `by` is the command, for the next one's message.

        Warns where nothing can be kept here: what the command made is there all the same.
        """
        try:
            self._remember(by, values)
        except OSError as error:
            where = error.filename or self.path  # a full disk names no file
            _log.warning("the next command will not know of this one by itself: %s: %s", error.strerror, where)

    def _remember(self, by: str, values: Mapping[str, str | Path | None]) -> None:
        with Lock(lock_inside(self.path.parent), self.path, wait_s=_WAIT_S):  # values that another command stored stay
            folders.sweep(self.path.parent)
            content = self._read()
            for key, value in values.items():
                if key not in KEYS:
                    raise ValueError(f"the workspace keeps {KEYS}, not {key!r}")
                if value is None:
                    content.pop(key, None)
                else:
                    at = datetime.now().strftime("%Y-%m-%d %H:%M")
                    content[key] = {"value": portable(str(value), self.path.parent.parent), "by": by, "at": at}
            write_atomic(self.path, to_json(content, indent=1, ensure_ascii=True) + "\n")

    def resolve(self, key: str, given: str | Path | None, default: str | None = None) -> Resolved:
        """The value given, else the one remembered, else the default."""
        if given is not None:
            return Resolved(str(given), "given")
        entry = self._read().get(key)
        if entry is None:
            return Resolved(default, "default")
        return Resolved(entry["value"], f"remembered from `{entry['by']}`, {entry['at']}")
