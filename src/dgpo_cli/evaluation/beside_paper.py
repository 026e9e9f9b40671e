"""The paper's figures next to a result, each with the reasons why the two may not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpo_cli.core.config import load_toml
from dgpo_cli.evaluation.published import ARCAP, ARCAP_REASONS, Conditions, PublishedRow, differences, row_for
from dgpo_cli.models.sources import ModelSource


def published_row(source: ModelSource) -> PublishedRow | None:
    """The paper's row of a model: of a released checkpoint, or of the method that trained a run."""
    return row_for(repo=None if source.local else source.location, method=_training_method(source))


def _training_method(source: ModelSource) -> str | None:
    """The method that trained the weights of a run folder (its best/); None for any other model."""
    config = Path(source.location).parent / "config.toml"
    if not source.local or Path(source.location).name != "best" or not config.is_file():
        return None
    method = load_toml(config).get("method")
    return method if isinstance(method, str) else None


def published_em(row: PublishedRow | None, conditions: Conditions) -> dict[str, Any] | None:
    if row is None or conditions.benchmark not in row.em:
        return None
    reasons = differences(row, conditions)
    return {"row": row.label, "em": row.em[conditions.benchmark], "comparable": not reasons, "reasons": reasons}


def published_average(row: PublishedRow | None, described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The row's mean over the same benchmarks."""
    published = [benchmark["published"] for benchmark in described.values()]
    if row is None or not all(published):
        return None
    reasons = sorted({reason for one in published for reason in one["reasons"]})
    if set(described) != set(row.em):
        reasons.append(f"{len(described)} of {len(row.em)} benchmarks")
    em = sum(one["em"] for one in published) / len(published)
    return {"row": row.label, "em": em, "comparable": not reasons, "reasons": reasons}


def published_arcap(published: Mapping[str, Any] | None, benchmark: str) -> dict[str, Any] | None:
    """The paper's ARCap figures of the row that `published_em` found; never comparable, for the reasons given."""
    figures = None if published is None else ARCAP.get(published["row"], {}).get(benchmark)
    if published is None or figures is None:
        return None
    reasons = [*ARCAP_REASONS, *published["reasons"]]
    return {"row": published["row"], **asdict(figures), "comparable": False, "reasons": reasons}
