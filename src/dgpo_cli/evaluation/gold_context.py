"""ARCap of a model: what it reads from gold context, what its first query finds, how often it searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.evaluation.arcap import MODES, GoldContext, GoldReader, find_gold, gold_codec
from dgpo_cli.evaluation.beside_paper import published_arcap
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.evaluation.suite import Benchmark
from dgpo_cli.evaluation.summary import Report

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent

_FIELDS = ("n", "draws", "em", "em_interval", "f1", "errors", "truncated_observations")


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
) -> dict[str, dict[str, Any]]:
    """Ask every question whose gold passages are at hand in both modes, into `folder`/gold/NAME-MODE.jsonl.

    Returns by benchmark the counts of `GoldContext` and a summary per mode.
    """
    contexts = gold_contexts(benchmarks)
    codecs = {mode: gold_codec(agent.codec, mode) for mode in MODES}
    total = sum(len(context.passages) for context in contexts.values()) * samples * len(MODES)
    done = 0
    results: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        context = contexts[benchmark.name]
        questions = [question for question in benchmark.questions if question.id in context.passages]
        results[benchmark.name] = context.to_json()
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
            results[benchmark.name][mode] = _summary(report)
            done += len(questions) * samples
    return results


def _summary(report: Report) -> dict[str, Any] | None:
    """None where no question could be asked."""
    values = asdict(report.overall)
    return {name: values[name] for name in _FIELDS} if report.outcomes else None


def with_arcap(report: Mapping[str, Any], gold: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report with an "arcap" entry per benchmark."""
    benchmarks = {
        name: benchmark
        | {
            "arcap": {
                "gold": dict(gold[name]),
                "first_hit": benchmark["first_hit"],
                "first_hit_interval": benchmark["first_hit_interval"],
                "steps": benchmark["searches"],
                "published": published_arcap(benchmark["published"], name),
            }
        }
        for name, benchmark in report["benchmarks"].items()
    }
    return dict(report) | {"benchmarks": benchmarks}
