"""The paper's figures next to a result, each with the reasons why the two may not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dgpo_cli.core.run_config import read_config
from dgpo_cli.evaluation.published import (
    ARCAP,
    ARCAP_REASONS,
    Conditions,
    PublishedArcap,
    PublishedRow,
    differences,
    row_for,
)
from dgpo_cli.models.sources import ModelSource


@dataclass(frozen=True, slots=True)
class PublishedEM:
    """EM of a row of the paper, and whether a result may be compared with it."""

    row: str
    em: float
    comparable: bool
    reasons: list[str]  # why it is not


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedArcapBeside(PublishedArcap):
    """ARCap of a row of the paper next to a result; never comparable."""

    row: str
    comparable: bool
    reasons: list[str]


def published_row(source: ModelSource) -> PublishedRow | None:
    """The paper's row of a model: of a released checkpoint, or of the method that trained a run."""
    return row_for(repo=None if source.local else source.location, method=_training_method(source))


def _training_method(source: ModelSource) -> str | None:
    """The method that trained the weights of a run folder (its best/); None for any other model."""
    place = Path(source.location)
    if not source.local or place.name != "best":
        return None
    method: str | None = read_config(place.parent).get("method")
    return method


def published_em(row: PublishedRow | None, conditions: Conditions) -> PublishedEM | None:
    if row is None or conditions.benchmark not in row.em:
        return None
    reasons = differences(row, conditions)
    return PublishedEM(row.label, row.em[conditions.benchmark], not reasons, reasons)


def published_average(row: PublishedRow | None, published: Mapping[str, PublishedEM | None]) -> PublishedEM | None:
    """The row's mean over the benchmarks that `published` names."""
    known = [one for one in published.values() if one is not None]
    if row is None or len(known) < len(published):
        return None
    reasons = sorted({reason for one in known for reason in one.reasons})
    if set(published) != set(row.em):
        reasons.append(f"{len(published)} of {len(row.em)} benchmarks")
    return PublishedEM(row.label, sum(one.em for one in known) / len(known), not reasons, reasons)


def published_arcap(published: PublishedEM | None, benchmark: str) -> PublishedArcapBeside | None:
    """The paper's ARCap figures of the row that `published_em` found; never comparable, for the reasons given."""
    figures = None if published is None else ARCAP.get(published.row, {}).get(benchmark)
    if published is None or figures is None:
        return None
    reasons = [*ARCAP_REASONS, *published.reasons]
    return PublishedArcapBeside(**asdict(figures), row=published.row, comparable=False, reasons=reasons)
