"""Files of trajectories: those of `dgpo distill-data`, as the commands that train on them read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.records import read_records
from dgpo_cli.core.schema import check, maybe, record, text
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.errors import InputError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.sources import ModelSource, config_values

if TYPE_CHECKING:
    pass


_AGAIN = "write it again with `dgpo distill-data`"
_HEADER = record({"protocol": record({})}, {"tokenizer": maybe(text())})


@dataclass(frozen=True, slots=True)
class TrajectorySet:
    """A file of trajectories and the agent text that they were made with."""

    path: Path
    protocol: dict[str, Any]
    tokenizer: str | None  # `Codec.digest` of what the token ids are of; None if not recorded
    trajectories: list[Trajectory]
    unwritten: tuple[int, ...] = ()  # lines of those without a token that a model wrote, which are left out


def trajectory_file(path: Path) -> Path:
    """A trajectory file, or the one inside a run folder. Raises InputError if there is none."""
    file = path / "trajectories.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no trajectories at {path}", hint="make some with `dgpo distill-data`, or give --data FILE")
    return file


def recorded_limits(path: Path) -> dict[str, int]:
    """Limits that a trajectory file was written under. Raises InputError."""
    _, _, protocol, _ = _read(path)
    return protocol.limits


def _read(path: Path) -> tuple[Path, dict[str, Any], Protocol, Iterator[tuple[int, dict[str, Any]]]]:
    """File, header, the agent text in it, and (line number, row). Raises InputError."""
    file = trajectory_file(path)
    header, rows = read_records(file, "trajectories")
    check(header, _HEADER, f"{file}:1", hint=_AGAIN)
    try:
        protocol = Protocol.from_json(header["protocol"])
    except InputError as error:
        raise InputError(f"{file}:1: {error.message}", hint=_AGAIN) from error
    return file, header, protocol, rows


def read_trajectories(path: Path) -> TrajectorySet:
    """Trajectories with written tokens, and the line numbers of the others. Raises InputError naming the line."""
    file, header, _, rows = _read(path)
    lines: dict[str, int] = {}
    trajectories, unwritten = [], []
    for line, row in rows:
        try:
            trajectory = Trajectory.from_json(row)
        except ValueError as error:
            raise InputError(f"{file}:{line}: not a trajectory ({error})", hint=_AGAIN) from error
        if trajectory.key in lines:
            raise InputError(
                f"{file}:{line}: attempt {trajectory.key!r} is also on line {lines[trajectory.key]}",
                hint=f"remove one of the two, or {_AGAIN}",
            )
        lines[trajectory.key] = line
        if trajectory.num_written:
            trajectories.append(trajectory)
        else:
            unwritten.append(line)
    if lines and not trajectories:
        raise InputError(f"{file}: no trajectory holds a token that a model wrote", hint=_AGAIN)
    return TrajectorySet(file, header["protocol"], header.get("tokenizer"), trajectories, tuple(unwritten))


def require_known_tokens(data: TrajectorySet, model: ModelSource) -> None:
    """Raises InputError where a trajectory holds a token id that the model has no embedding of."""
    known = (config_values(model) or {}).get("vocab_size")
    if not isinstance(known, int):
        return
    for trajectory in data.trajectories:
        if max(trajectory.token_ids) >= known:
            raise InputError(
                f"{data.path}: trajectory {trajectory.key!r} holds token id {max(trajectory.token_ids)}, "
                f"{model.name} knows {known}",
                hint="give trajectories that were made with the student's tokenizer",
            )
