"""ARCap of a model: what it reads from gold context, what its first query finds, how often it searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.evaluation.arcap import MODES, GoldContext, GoldReader, find_gold, gold_codec
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.evaluation.stats import Interval
from dgpo_cli.evaluation.suite import Benchmark
from dgpo_cli.evaluation.summary import Report

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent


@dataclass(frozen=True, slots=True)
class GoldMode:
    """Answers to questions that came with their gold passages, in one mode."""

    n: int  # questions
    draws: int
    em: float
    em_interval: Interval
    f1: float
    errors: Mapping[str, int]
    truncated_observations: int


@dataclass(frozen=True, slots=True)
class GoldFigures:
    """The counts of `GoldContext`, and both modes; None where no question could be asked."""

    questions: int
    without_gold: int
    incomplete: int
    missing_passages: int
    direct: GoldMode | None
    think: GoldMode | None


def gold_contexts(benchmarks: Sequence[Benchmark]) -> dict[str, GoldContext]:
    """A server does not give its passages, so every gold passage counts as missing from its corpus."""
    return {b.name: find_gold(b.questions, () if b.index.passages is None else b.index.passages) for b in benchmarks}


def run_gold(
    agent: Agent,
    benchmarks: Sequence[Benchmark],
    folder: Path,
    headers: Mapping[str, Mapping[str, Any]],
    *,
    samples: int = 1,
    progress: Progress | None = None,
) -> dict[str, GoldFigures]:
    """Ask every question whose gold passages are at hand in both modes, into `folder`/gold/NAME-MODE.jsonl."""
    contexts = gold_contexts(benchmarks)
    codecs = {mode: gold_codec(agent.codec, mode) for mode in MODES}
    total = sum(len(context.passages) for context in contexts.values()) * samples * len(MODES)
    done = 0
    results: dict[str, GoldFigures] = {}
    for benchmark in benchmarks:
        context = contexts[benchmark.name]
        questions = [question for question in benchmark.questions if question.id in context.passages]
        modes: list[GoldMode | None] = []
        for mode in MODES:

            def tell(now: int, _: int, /, note: str = "", *, before: int = done) -> None:
                if progress is not None:
                    progress(before + now, total, note)

            reader = GoldReader(
                context, mode, engine=agent.engine, codec=codecs[mode], settings=agent.settings, seed=agent.seed
            )
            header = dict(headers[benchmark.name]) | {"protocol": codecs[mode].protocol.to_json(), "mode": mode}
            path = folder / "gold" / f"{benchmark.name}-{mode}.jsonl"
            with RecordFile(path, key="key", schema="gold context", meta=header) as records:
                report = evaluate(
                    questions,
                    run_batch=reader.run,
                    with_turns=reader.with_turns,
                    samples=samples,
                    records=records,
                    progress=tell,
                )
            modes.append(_figures(report))
            done += len(questions) * samples
        results[benchmark.name] = GoldFigures(
            len(context.passages), context.without_gold, context.incomplete, context.missing_passages, *modes
        )
    return results


def _figures(report: Report) -> GoldMode | None:
    """None where no question could be asked."""
    return GoldMode(*(getattr(report.overall, f.name) for f in fields(GoldMode))) if report.outcomes else None
