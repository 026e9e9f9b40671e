"""The table of `dgpo reproduce` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Bounds(Protocol):
    """Anything with a lower and an upper bound."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a row to the one that all are compared with, on the same questions; shares from -1 to 1."""

    mean: float
    over_questions: Bounds  # the seeds as they are
    over_seeds: Bounds  # further seeds too


@dataclass(frozen=True, slots=True)
class LadderRow:
    """One method over all seeds; shares from 0 to 1, seconds of training."""

    name: str
    label: str
    published: float | None
    em: Sequence[float]  # by seed
    interval: Bounds
    em_by_hops: Mapping[str, float]
    searches: float
    seconds: float
    difference: Difference | None

    @property
    def mean(self) -> float:
        return sum(self.em) / len(self.em)


HEADER = (
    "row", "EM", "95 %", "by seed", "one hop", "two hops", "searches", "to DGPO", "95 %, questions", "95 %, seeds too",
    "training s", "paper",
)  # fmt: skip


def cells(row: LadderRow) -> list[str]:
    """In the order of HEADER; shares in percent."""
    difference = ["", "", ""]
    if row.difference is not None:
        difference = [
            f"{100 * row.difference.mean:+.1f}",
            _range(row.difference.over_questions, sign="+"),
            _range(row.difference.over_seeds, sign="+"),
        ]
    return [
        row.label,
        _percent(row.mean),
        _range(row.interval),
        " / ".join(_percent(em) for em in row.em),
        _percent(row.em_by_hops["1"]),
        _percent(row.em_by_hops["2"]),
        f"{row.searches:.2f}",
        *difference,
        f"{row.seconds:.0f}",
        "" if row.published is None else _percent(row.published),
    ]


def page(rows: Sequence[LadderRow], *, title: str, notes: Sequence[str], picture: str) -> str:
    lines = [f"# {title}", "", *[line for note in notes for line in (note, "")]]
    lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    lines += ["", f"![validation EM over training time, seed by seed]({picture})", ""]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(bounds: Bounds, sign: str = "") -> str:
    return f"{100 * bounds.low:{sign}.1f} to {100 * bounds.high:{sign}.1f}"
