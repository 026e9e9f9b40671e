"""The report of an evaluation: the object that `dgpo eval --json` prints and report.json keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dgpo_cli.evaluation.beside_paper import PublishedArcapBeside, PublishedEM, published_arcap
from dgpo_cli.evaluation.gold_context import GoldFigures
from dgpo_cli.evaluation.stats import Interval
from dgpo_cli.evaluation.summary import Average, Report, Summary


@dataclass(frozen=True, slots=True)
class Arcap:
    """What a model can do apart: read gold passages, find them by its first query, and how often it searches."""

    gold: GoldFigures
    first_hit: float | None
    first_hit_interval: Interval | None
    steps: float
    published: PublishedArcapBeside | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport(Summary):
    """One benchmark: its figures, what it was measured on, and the paper's figure."""

    asked: int  # draws, those included whose search failed
    failed_searches: int
    failure: str | None  # cause of the first
    hops: Mapping[str, Summary]
    index: Mapping[str, Any]
    questions: Mapping[str, Any]
    published: PublishedEM | None
    arcap: Arcap | None = None  # where it was measured

    @classmethod
    def about(
        cls, report: Report, *, index: Mapping[str, Any], questions: Mapping[str, Any], published: PublishedEM | None
    ) -> BenchmarkReport:
        """The figures of `report`, with what they were measured on."""
        return cls(
            **{field.name: getattr(report.overall, field.name) for field in fields(Summary)},
            asked=report.asked,
            failed_searches=report.failed_searches,
            failure=report.failure,
            hops={str(hops): summary for hops, summary in report.by_hops.items()},
            index=index,
            questions=questions,
            published=published,
        )

    def with_gold_context(self, name: str, gold: GoldFigures) -> BenchmarkReport:
        """The same with ARCap; `name` is the benchmark's."""
        beside = published_arcap(self.published, name)
        return replace(self, arcap=Arcap(gold, self.first_hit, self.first_hit_interval, self.searches, beside))


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the answers were drawn."""

    temperature: float
    seed: int
    samples: int


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All benchmarks of one model."""

    benchmarks: Mapping[str, BenchmarkReport]
    avg: Average
    complete: bool  # no search failed
    model: Mapping[str, Any]
    decoding: Decoding
    rollout: Mapping[str, Any]
    run: str  # folder

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for benchmark in values["benchmarks"].values():
            if benchmark["arcap"] is None:
                del benchmark["arcap"]
        return values
