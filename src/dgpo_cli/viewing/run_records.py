"""A run folder as `dgpo report` reads it: its record, what it logged, and the episodes that it kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dgpo_cli.core import schema
from dgpo_cli.core.records import read_records
from dgpo_cli.core.run_config import read_config
from dgpo_cli.core.run_list import ROLLOUTS, ROLLOUTS_FILE, VALIDATION_FILE
from dgpo_cli.core.run_metrics import read_metrics
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.evaluation.outcome import Outcome, grade
from dgpo_cli.evaluation.summary import Report

SHOWN = ("kd", "rl", "eval", "distill-data")  # commands whose runs keep curves or episodes
_NAMED = schema.map_of(schema.ANYTHING)
_HEADER = schema.record(
    {"protocol": _NAMED},
    dict.fromkeys(("settings", "index", "questions"), _NAMED) | {"tokenizer": schema.maybe(schema.text())},
)
_STEP = schema.record({"step": schema.whole(0)})


class Kept(NamedTuple):
    """An episode, and what it is shown under: rollouts of training are apart from answers to a question set."""

    key: str
    group: str
    trajectory: Trajectory
    header: Mapping[str, Any]
    tokens: Mapping[str, Sequence[float | None]]  # what is known of each token, by name, as long as `token_ids`


@dataclass(slots=True)
class RunRecords:
    """One run folder, with the files of episodes in it by question set."""

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    files: list[tuple[Path, str]]  # and the schema of their records
    name: str = ""
    reports: dict[str, Report] = field(default_factory=dict)  # by question set
    right: dict[str, bool] = field(default_factory=dict)  # by answer to a question set
    groups: dict[str, str] = field(default_factory=dict)  # by key of everything that can be read
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)  # of an evaluation, by file of answers

    @property
    def model(self) -> str:
        """The model whose tokenizer decodes the episodes."""
        if self.record["command"] == "distill-data":
            return str(self.config.get("tokenizer") or self.config.get("teacher"))
        return str(self.config.get("model")) if self.record["command"] == "eval" else str(self.path)

    def episodes(self) -> Iterator[Kept]:
        """Every episode in the order of its file. Raises InputError naming file and line."""
        for file, kind in self.files:
            header, rows = read_records(file, kind)
            schema.check(header, _HEADER, f"{file}, its first line", hint="make the run again with --fresh")
            for line, row in rows:
                yield kept(row, kind, header, f"{file}:{line}")


def kept(row: Mapping[str, Any], kind: str, header: Mapping[str, Any], place: str) -> Kept:
    """The episode of a row of a record file of a `kind`. Raises InputError that names the place."""
    try:
        trajectory = Trajectory.from_json(row)
        step = schema.require(row, _STEP)["step"] if kind == ROLLOUTS else None
        tokens = _tokens(row.get("tokens", {}), len(trajectory.token_ids))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{place}: not an episode ({error!r})", hint="make the run again with --fresh") from error
    if trajectory.logprobs is not None:
        tokens = {"logprobs": trajectory.logprobs} | tokens
    if step is None:
        return Kept(trajectory.key, trajectory.question.qa_set, trajectory, header, tokens)
    name = f"{trajectory.question.qa_set}, rollouts of training"
    return Kept(f"step {step}/{trajectory.key}", name, trajectory, header, tokens)


def _tokens(given: Mapping[str, Any], length: int) -> dict[str, Sequence[float | None]]:
    """Raises ValueError for a list of another length; a value that is no finite number is not known."""
    if wrong := [name for name, values in given.items() if len(values) != length]:
        raise ValueError(f"tokens.{wrong[0]} has not {length} values")
    return {name: [x if schema.is_number(x) else None for x in values] for name, values in given.items()}


def is_shown(path: Path) -> bool:
    """Whether a run can have curves or episodes. Also where its record cannot be read: whoever opens it says so."""
    try:
        return read_run(path)["command"] in SHOWN
    except (ConfigError, InputError):
        return True


def files_of(path: Path, command: str, config: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Files in which a run may keep its episodes, and the schema of their records."""
    if command == "eval":
        return [(path / f"{name}.jsonl", "evaluation") for name in config.get("benchmarks", ())]
    if command == "distill-data":
        return [(path / "episodes.jsonl", "trajectories")]
    return [(path / VALIDATION_FILE, "evaluation"), (path / ROLLOUTS_FILE, ROLLOUTS)]


def open_run(path: Path) -> RunRecords:
    """Raises ConfigError if `path` is no run folder, InputError if it is damaged."""
    if not (path / "run.json").is_file():
        raise ConfigError(f"{path} is not a run folder", hint="`dgpo runs` lists them")
    record = read_run(path)
    if (command := record["command"]) not in SHOWN:
        raise ConfigError(
            f"{path} is a run of `dgpo {command}`, which has neither curves nor episodes",
            hint=f"give a run of {', '.join(SHOWN)}: `dgpo runs` lists them",
        )
    config = read_config(path)
    files = files_of(path, command, config)
    run = RunRecords(path, record, config, read_metrics(path), [entry for entry in files if entry[0].is_file()])
    if command == "eval":
        run.headers = {file.stem: read_records(file, kind)[0] for file, kind in run.files}
    by_set: dict[str, list[Outcome]] = {}
    for key, group, trajectory, *_ in run.episodes():
        run.groups[key] = group
        if key != trajectory.key:  # a rollout at the temperature of training is no measure of the model
            continue
        outcome = grade(trajectory)
        run.right[key] = outcome.em
        by_set.setdefault(group, []).append(outcome)
    run.reports = {name: Report.of(outcomes) for name, outcomes in by_set.items()}
    return run


def answers(path: Path) -> tuple[list[Trajectory], int | None]:
    """A run's answers to question sets, and how many passages a search showed; rollouts of training are none.

    Raises as `open_run`, and InputError where there is no answer.
    """
    found = [one for one in open_run(path).episodes() if one.key == one.trajectory.key]
    if not found:
        raise InputError(f"{path} holds no answers of an evaluation", hint="`dgpo runs` lists the runs")
    told = [one.header.get("settings", {}).get("top_k") for one in found]
    known = told[0] if all(one == told[0] for one in told) else None
    return [one.trajectory for one in found], known if type(known) is int and known > 0 else None
