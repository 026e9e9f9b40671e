"""Run folders that other processes write, read a little at a time: what `dgpo report --watch` shows.

Only files inside the folders of runs are read, through no link that leads out of them, and of each at most its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.figures import duration
from dgpo_cli.core.records import parse_line
from dgpo_cli.core.run_config import read_config
from dgpo_cli.core.run_list import status_of
from dgpo_cli.core.run_metrics import METRICS_FILE, measured, metrics_row
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.tail import Tail
from dgpo_cli.core.untrusted import open_file
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.training.run.progress_line import TrainingLine
from dgpo_cli.viewing.charts import Curve, curves
from dgpo_cli.viewing.episode_text import ShownAttempt, ShownQuestion, attempt
from dgpo_cli.viewing.run_records import Kept, RunRecords, files_of, kept

METRICS_BYTES, EPISODES_BYTES = 8 << 20, 16 << 20  # of a file at once; ours
MOST_ROWS = 5_000  # steps of a run, the last ones
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WatchedEpisode(ShownQuestion):
    """One of the last episodes of a run, without its text."""

    attempt: ShownAttempt


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A run at work, for the head of the page."""

    number: int
    name: str
    path: str
    logged: bool  # it has curves
    revision: int
    status: str
    step: int
    total: int | None  # steps
    left: str | None  # time
    line: str  # its last figures


class WatchedEpisodes:
    """The last `most` episodes of one file: what a list shows of them, and where in the file each stands."""

    def __init__(self, file: Path, schema: str, most: int) -> None:
        self.file, self.schema, self._most = file, schema, most
        self.entries: OrderedDict[str, WatchedEpisode] = OrderedDict()
        self.problem: str | None = None
        self.header: Mapping[str, Any] = {}
        self._tail, self._places = Tail(file, EPISODES_BYTES), dict[str, tuple[int, int]]()

    def refresh(self) -> bool:
        """Whether something changed. Raises OSError where the file cannot be read."""
        anew, lines = self._tail.read()
        if anew:
            self.entries.clear()
            self._places.clear()
            self.problem = None
            self.header = self._read_header() if lines else {}
        if not self.header:
            return anew
        for start, content in lines if not lines or lines[0].start else lines[1:]:
            if not content.strip():
                continue
            place = f"{self.file}, byte {start:,}"
            try:
                episode = kept(parse_line(content, place), self.schema, self.header, place)
            except InputError as error:
                self.problem = error.message
                continue
            self._keep(episode, start, len(content))
        return anew or bool(lines)

    def read(self, key: str) -> Kept | None:
        """The whole episode; None where it is not among the last ones, or the file is another one since."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        with open_file(self.file) as stream:
            stream.seek(start)
            content = stream.read(length)
        try:
            episode = kept(parse_line(content, str(self.file)), self.schema, self.header, str(self.file))
        except InputError:
            return None
        return episode if episode.key == key else None

    def _keep(self, episode: Kept, start: int, length: int) -> None:
        self.entries[episode.key] = WatchedEpisode.of(
            episode.key,
            episode.group,
            episode.trajectory.question,
            attempt=attempt(episode.trajectory, None, {}, more=True),
        )
        self._places[episode.key] = start, length
        while len(self.entries) > self._most:
            del self._places[self.entries.popitem(last=False)[0]]

    def _read_header(self) -> Mapping[str, Any]:
        with open_file(self.file) as stream:
            line = stream.readline(_HEADER_BYTES)
        try:
            header = parse_line(line, f"{self.file}, its first line")
        except InputError as error:
            self.problem = error.message
            return {}
        if header.get("schema") == self.schema and "protocol" in header:
            return header
        self.problem = f"{self.file} is not a file of {self.schema}"
        return {}


class WatchedRun:
    """One run folder. `number` names it to the page, `revision` grows with what is read."""

    def __init__(self, path: Path, number: int, episodes: int) -> None:
        self.path, self.number, self.revision = path, number, 0
        self.records: RunRecords | None = None
        self.files: list[WatchedEpisodes] = []
        self._most = episodes
        self._metrics = Tail(path / METRICS_FILE, METRICS_BYTES)
        self._damage: str | None = None  # of its metrics
        self._record: tuple[int, ...] = ()  # what the record was read from
        self._problems: list[str] = []
        self._line = TrainingLine()
        self._curves: tuple[int, dict[str, Curve]] = (-1, {})  # of which revision

    def refresh(self) -> None:
        """Read what has come. A file that is damaged is told of; what was read before stays."""
        self._problems = []
        changed = self._tried(self._read_record) | self._tried(self._read_metrics)
        for file in self._reachable():
            changed |= self._tried(file.refresh)
        self.revision += changed

    def _tried(self, read: Callable[[], bool]) -> bool:
        try:
            return read()
        except (InputError, ConfigError) as error:
            self._problems.append(error.message)
        except OSError as error:
            self._problems.append(f"{error.filename or self.path}: {error.strerror}")
        return False

    @property
    def problems(self) -> list[str]:
        """The parts of it that cannot be read, a line each."""
        lasting = [self._damage, *(file.problem for file in self.files)]
        return self._problems + [problem for problem in lasting if problem is not None]

    @property
    def curves(self) -> dict[str, Curve]:
        if self._curves[0] != self.revision and self.records is not None:
            self._curves = self.revision, curves(self.records.rows)
        return self._curves[1]

    def about(self) -> RunProgress:
        """Progress of the run."""
        assert self.records is not None, "asked of runs that were read"
        rows, total = self.records.rows, self.records.config.get("steps")
        step = max((int(row["step"]) for row in rows), default=0)
        seconds = max((s for row in rows if (s := measured(row, "seconds")) is not None), default=0.0)
        known = isinstance(total, int) and 0 < step < total
        return RunProgress(
            number=self.number,
            name=self.records.name,
            path=str(self.path),
            logged=bool(rows),
            revision=self.revision,
            status=status_of(self.path, self.records.record),
            step=step,
            total=total if isinstance(total, int) else None,
            left=duration((total - step) * seconds / step) if known and isinstance(total, int) else None,
            line=str(self._line),
        )

    def _reachable(self) -> list[WatchedEpisodes]:
        """Files of episodes that are inside the run's folder."""
        if self.records is not None:
            known = {file.file for file in self.files}
            for file, schema in files_of(self.path, self.records.record["command"], self.records.config):
                if file not in known and inside(self.path, file):
                    self.files.append(WatchedEpisodes(file, schema, self._most))
        return [file for file in self.files if inside(self.path, file.file)]

    def _read_record(self) -> bool:
        found = tuple(
            number
            for name in ("run.json", "config.toml")
            if (file := self._own(name)).is_file()
            for number in (file.stat().st_ino, file.stat().st_mtime_ns, file.stat().st_size)
        )
        if found == self._record:
            return False
        record = read_run(self.path)
        config = read_config(self.path)
        if self.records is None or self.records.record.get("created") != record["created"]:  # another run in its place
            self.records = RunRecords(self.path, record, config, [], [], self.path.name)
            self.files, self._metrics = [], Tail(self.path / METRICS_FILE, METRICS_BYTES)
        self.records.record, self.records.config = record, config
        self._record = found
        return True

    def _read_metrics(self) -> bool:
        self._own(METRICS_FILE)
        if self.records is None:
            return False
        anew, lines = self._metrics.read()
        if anew:
            self.records.rows.clear()
            self._line, self._damage = TrainingLine(), None
        for start, content in lines:
            if content.strip():
                try:
                    row = metrics_row(content, f"{self._metrics.path}, byte {start:,}")
                except InputError as error:
                    self._damage = error.message
                    continue
                self.records.rows.append(row)
                self._line.log(row)
        del self.records.rows[:-MOST_ROWS]
        return anew or bool(lines)

    def _own(self, name: str) -> Path:
        """A file of the run. Raises InputError where it is a link that leads elsewhere."""
        if not inside(self.path, self.path / name):
            raise InputError(f"{self.path / name} leads out of the run's folder", hint="put the file itself there")
        return self.path / name


def inside(run: Path, file: Path) -> bool:
    """Whether `file`, with all links followed, lies in the folder of the run."""
    return file.resolve().is_relative_to(run.resolve())
