"""The report of an evaluation made of graded answers alone, for tests of its tables."""

from __future__ import annotations

from dgpo_cli.evaluation.beside_paper import PublishedEM
from dgpo_cli.evaluation.report import BenchmarkReport, Decoding, EvalReport
from dgpo_cli.evaluation.summary import Report, macro_average


def eval_report(name: str, found: Report, *, model: str = "m", published: PublishedEM | None = None) -> EvalReport:
    """Of one benchmark, greedy."""
    benchmark = BenchmarkReport.about(found, index={}, questions={}, published=published)
    decoding = Decoding(temperature=0.0, seed=3, samples=1)
    return EvalReport({name: benchmark}, macro_average({name: found}), True, {"name": model}, decoding, {}, "run")
