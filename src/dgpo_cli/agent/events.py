"""Events inside running episodes, for a chat that streams; training does not use them."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import SearchCall


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text written by the model; whole characters only, tags included."""

    episode: int
    text: str


@dataclass(frozen=True, slots=True)
class SearchStarted:
    episode: int
    query: str


@dataclass(frozen=True, slots=True)
class SearchDone:
    episode: int
    call: SearchCall


@dataclass(frozen=True, slots=True)
class Correction:
    """The turn held no action; this text was appended."""

    episode: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    episode: int
    trajectory: Trajectory


Event = TokenText | SearchStarted | SearchDone | Correction | Finished
