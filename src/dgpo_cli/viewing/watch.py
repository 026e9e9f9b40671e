"""Replies of `dgpo report --watch` to its page: the runs of a folder and their latest rows, as JSON.

| path | answer |
|---|---|
| `/` | the page |
| `/state` | the runs, the table of them, warnings; of each run a revision |
| `/runs/NUMBER` | curves of a run, and a list of its last episodes |
| `/runs/NUMBER/episode?key=KEY` | one of those with its text, and what is known of each token |

A run is named by a number that the server gave it, so no request names a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from dgpo_cli import __version__
from dgpo_cli.core.run_names import find_run, find_runs, short_names
from dgpo_cli.errors import ConfigError
from dgpo_cli.evaluation.tables import Table
from dgpo_cli.viewing.charts import Chart, Curve, charts
from dgpo_cli.viewing.episode_text import ShownAttempt, attempt
from dgpo_cli.viewing.following import RunProgress, WatchedEpisode, WatchedRun, inside
from dgpo_cli.viewing.report import LAST, alarms, summary
from dgpo_cli.viewing.run_records import Kept, is_shown

if TYPE_CHECKING:
    from dgpo_cli.models.codec import Codec

_EVERY_S, _SEARCH_EVERY_S = 1.0, 5.0  # how often files are read, and runs looked for, however often the page asks
_ALARMS = 3  # of a run, the last ones


@dataclass(frozen=True, slots=True)
class WatchState:
    """The page without curves and episodes, which it asks for run by run."""

    version: str
    created: str
    folder: str
    runs: list[RunProgress]
    summary: Table
    charts: list[Chart]
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class WatchedContent:
    """Curves and episodes of one run."""

    revision: int
    curves: dict[str, Curve]
    episodes: list[WatchedEpisode]


class Watch:
    """The runs that were `given`, or the last LAST of `root`; of each file of episodes the last `episodes`.

    Raises ConfigError for what is given and no run.
    """

    def __init__(
        self,
        given: Sequence[Path],
        *,
        episodes: int,
        root: Path = Path(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        found = {name: find_run(name) or name for name in given}
        for name, path in found.items():
            if not (path / "run.json").is_file():
                raise ConfigError(f"{name} is not a run folder", hint="`dgpo runs` lists them")
        self._given, self._root, self._most, self._clock = list(found.values()), root, episodes, clock
        self._followed: dict[Path, WatchedRun] = {}  # every run that was ever shown, in the order of its number
        self._shown: list[WatchedRun] = []
        self._codecs: dict[tuple[int, str], Codec] = {}
        self._lock = Lock()
        self._read = self._searched = -float("inf")

    def state(self) -> WatchState:
        """Reads what has come, and returns the page but for curves and episodes."""
        with self._lock:
            self._refresh()
            runs = self._known()
            opened = [run.records for run in runs if run.records is not None]
            for records, name in zip(opened, short_names([records.path for records in opened]), strict=True):
                records.name = name
            damaged = [problem for run in self._shown for problem in run.problems]
            return WatchState(
                version=f"dgpo {__version__}",
                created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                folder=str(self._root.resolve()),
                runs=[run.about() for run in runs],
                summary=summary(opened),
                charts=charts([run.curves for run in runs]),
                warnings=[*damaged, *(line for records in opened for line in alarms([records])[-_ALARMS:])],
            )

    def run(self, number: int) -> WatchedContent | None:
        with self._lock:
            run = self._numbered(number)
            if run is None:
                return None
            episodes = [entry for file in run.files for entry in file.entries.values()]
            return WatchedContent(run.revision, run.curves, episodes)

    def episode(self, number: int, key: str) -> ShownAttempt | None:
        """An attempt with its steps; None where it is gone. Raises DgpoError without what turns tokens into text."""
        with self._lock:
            run = self._numbered(number)
            found = None if run is None else next((e for f in run.files if (e := f.read(key)) is not None), None)
            if run is None or found is None:
                return None
            return attempt(found.trajectory, self._codec(run, found), found.tokens)

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._searched >= _SEARCH_EVERY_S:
            self._searched = now
            self._search()
        if now - self._read >= _EVERY_S:
            self._read = now
            for run in self._shown:
                run.refresh()

    def _search(self) -> None:
        """The runs that were at work last, in the order in which they were seen first."""
        chosen = self._given or sorted(filter(is_shown, find_runs(self._root)), key=_last_written)[-LAST:]
        for path in chosen:
            if path not in self._followed:
                self._followed[path] = WatchedRun(path, len(self._followed), self._most)
                self._read = -float("inf")
        self._shown = [run for path, run in self._followed.items() if path in chosen]

    def _known(self) -> list[WatchedRun]:
        return [run for run in self._shown if run.records is not None]

    def _numbered(self, number: int) -> WatchedRun | None:
        return next((run for run in self._known() if run.number == number), None)

    def _codec(self, run: WatchedRun, episode: Kept) -> Codec:
        from dgpo_cli.formats.protocol import Protocol
        from dgpo_cli.models.codec import Codec
        from dgpo_cli.models.load import KEPT_TOKENIZER, load_tokenizer
        from dgpo_cli.models.sources import ModelSource

        digest = str(episode.header.get("tokenizer"))
        if (run.number, digest) not in self._codecs:
            problem = "the run keeps no tokenizer"
            for folder in (run.path / KEPT_TOKENIZER, run.path / "best"):
                if folder.is_dir() and all(inside(run.path, file) for file in (folder, *folder.iterdir())):
                    tokenizer = load_tokenizer(ModelSource(str(folder), str(folder), local=True))
                    codec = Codec(tokenizer, Protocol.from_json(episode.header["protocol"]))
                    if digest in ("None", codec.digest):
                        self._codecs[run.number, digest] = codec
                        break
                    problem = "its tokens are not those of the tokenizer that the run keeps"
            else:
                raise ConfigError(problem, hint="`dgpo report` looks for the model itself")
        return self._codecs[run.number, digest]


def _last_written(run: Path) -> float:
    found = 0.0
    for name in ("run.json", "metrics.jsonl"):
        with suppress(OSError):
            found = max(found, (run / name).lstat().st_mtime)
    return found
