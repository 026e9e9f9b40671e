"""A model measured in a run folder: every answer recorded as it comes, who gave it and how, one report of all.

`dgpo eval` and the stages that evaluate (quickstart, reproduce) are this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.agent.identity import dated
from dgpo_cli.core import schema
from dgpo_cli.core.disk import check_space
from dgpo_cli.core.progress import Bar, Progress
from dgpo_cli.core.records import RecordFile, read_jsonl, to_json, write_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.engine.registry import IN_PROCESS
from dgpo_cli.evaluation.beside_paper import published_average, published_em, published_row
from dgpo_cli.evaluation.gold_context import run_gold
from dgpo_cli.evaluation.measured import MeasuredModel
from dgpo_cli.evaluation.published import Conditions
from dgpo_cli.evaluation.report import BenchmarkReport, Decoding, EvalReport
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.evaluation.suite import Benchmark, EvalSettings
from dgpo_cli.evaluation.summary import Report, macro_average
from dgpo_cli.evaluation.tables import markdown
from dgpo_cli.retrieval.open import OpenIndex

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent

BYTES_PER_QUESTION = 60_000  # ours: a record of four searches with three passages each, rounded up


def measure(
    run: RunDir,
    settings: EvalSettings,
    benchmarks: Sequence[Benchmark],
    model: MeasuredModel,
    *,
    bar: Bar,
    at_once: int | None = None,
) -> tuple[dict[str, Report], EvalReport]:
    """Answer everything that `run` has no record of, `at_once` questions together or those of the settings' wave.

    Writes report.json and report.md into it. Whether that finishes the run, the caller says.
    """
    from dgpo_cli.models.codec import Codec

    codec = Codec(model.tokenizer, dated(run, model.tokenizer, model.protocol))
    agent = model.agent(settings, codec, benchmarks[0].index.retriever, at_once)
    headers = {
        name: _as_begun(run.path / f"{name}.jsonl", header)
        for name, header in record_headers(settings, model, agent, benchmarks).items()
    }
    missing = num_draws(settings, benchmarks) - answered(run.path, benchmarks)
    check_space(run.path, missing * BYTES_PER_QUESTION)
    with bar("questions", "question") as progress:
        reports = run_benchmarks(agent, benchmarks, run.path, headers, samples=settings.samples, progress=progress)
    report = report_of(settings, model, agent, benchmarks, reports, headers, run.path)
    if settings.arcap:
        with bar("gold context", "question") as progress:
            gold = run_gold(agent, benchmarks, run.path, headers, samples=settings.samples, progress=progress)
        report = replace(
            report, benchmarks={name: b.with_gold_context(name, gold[name]) for name, b in report.benchmarks.items()}
        )
    write_report(run.path, report)
    return reports, report


def identity(settings: EvalSettings, benchmarks: Iterable[Benchmark], model: MeasuredModel) -> dict[str, Any]:
    """The settings that decide the answers: a run with the same identity is resumed, another one begins."""
    return asked(settings, benchmarks) | {
        "weights": model.weights,
        "protocol": model.protocol.digest,
        "computed_in": model.computed_in,  # what `precision` comes to on this machine
    }


def asked(settings: EvalSettings, benchmarks: Iterable[Benchmark]) -> dict[str, Any]:
    """The part of `identity` that is known before the model is loaded."""
    made = list(benchmarks)
    return asdict(settings) | {
        "corpora": {b.name: b.index.digest for b in made},
        "questions": {b.name: b.questions_digest for b in made},
    }


def num_draws(settings: EvalSettings, benchmarks: Iterable[Benchmark]) -> int:
    return sum(len(benchmark.questions) for benchmark in benchmarks) * settings.samples


def answered(folder: Path, benchmarks: Iterable[Benchmark]) -> int:
    """Draws that a run folder holds."""
    files = (folder / f"{benchmark.name}.jsonl" for benchmark in benchmarks)
    return sum(max(0, file.read_bytes().count(b"\n") - 1) for file in files if file.is_file())


def record_headers(
    settings: EvalSettings, model: MeasuredModel, agent: Agent, benchmarks: Iterable[Benchmark]
) -> dict[str, dict[str, Any]]:
    """By benchmark, the header of its record file: all conditions that `--compare` checks."""
    engine = model.engine_name(settings)
    shared = {
        "model": model.described(settings.model),
        "protocol": agent.codec.protocol.to_json(),
        "settings": agent.record()
        | {"capacity": agent.engine.capacity, "samples": settings.samples, "computed_in": model.computed_in}
        | ({} if engine == IN_PROCESS else {"engine": engine}),
    }
    return {
        b.name: shared
        | {
            "index": {"location": b.index.location, "digest": b.index.digest, **_corpus(b.index)}
            | ({"rerank": asdict(settings.rerank)} if b.index.reranked else {}),
            "questions": {"digest": b.questions_digest, "limit": settings.limit},
        }
        for b in benchmarks
    }


def _as_begun(file: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """The header with the places that the file names, if it is there: model and index may have been moved since.

    What is in them is in the header too, and has to be the same.
    """
    begun = next(read_jsonl(file), (0, {}))[1] if file.is_file() else {}
    places = {
        part: {name: begun[part][name] for name in ("name", "location") if name in begun[part]}
        for part in ("model", "index")
        if isinstance(begun.get(part), dict)
    }
    return dict(header) | {part: header[part] | found for part, found in places.items()}


def run_benchmarks(
    agent: Agent,
    benchmarks: Sequence[Benchmark],
    folder: Path,
    headers: Mapping[str, Mapping[str, Any]],
    *,
    samples: int = 1,
    progress: Progress | None = None,
) -> dict[str, Report]:
    """Answer everything that `folder` has no record of, into `folder`/NAME.jsonl."""
    from dgpo_cli.models.load import keep_tokenizer

    keep_tokenizer(folder, agent.codec.tokenizer)
    draws = {benchmark.name: len(benchmark.questions) * samples for benchmark in benchmarks}
    # Those of sets whose turn has not come yet count from the start: they take no time.
    done_of = {b.name: min(answered(folder, [b]), draws[b.name]) for b in benchmarks}
    reports = {}
    for benchmark in benchmarks:

        def tell(done: int, _: int, /, note: str = "", *, name: str = benchmark.name) -> None:
            done_of[name] = done
            if progress is not None:
                progress(sum(done_of.values()), sum(draws.values()), note)

        path, header = folder / f"{benchmark.name}.jsonl", headers[benchmark.name]
        with RecordFile(path, key="key", schema="evaluation", meta=header) as records:
            reports[benchmark.name] = evaluate(
                benchmark.questions,
                run_batch=replace(agent, retriever=benchmark.index.retriever).finished,
                with_turns=agent.codec.with_turns,
                samples=samples,
                records=records,
                progress=tell,
            )
    return reports


_SHARE = schema.number(0, 1)
REPORT = schema.record(  # what others than its writer read of report.json
    {
        "model": schema.record({"weights": schema.text()}),
        "complete": schema.FLAG,
        "decoding": schema.record({"temperature": schema.number(0)}),
        "benchmarks": schema.map_of(
            schema.record(
                {
                    "n": schema.whole(0),
                    "em": _SHARE,
                    "f1": _SHARE,
                    "em_interval": schema.record({"low": _SHARE, "high": _SHARE}),
                    "index": schema.record(
                        {"passages": schema.maybe(schema.whole(0)), "retriever": schema.maybe(schema.text())}
                    ),
                }
            )
        ),
    },
    {"rollout": schema.map_of(schema.ANYTHING)},
)


def report_of(
    settings: EvalSettings,
    model: MeasuredModel,
    agent: Agent,
    benchmarks: Sequence[Benchmark],
    reports: Mapping[str, Report],
    headers: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> EvalReport:
    """The report without ARCap."""
    # Which weights a server has, nobody knows here.
    row = None if model.parameters is None else published_row(model.source)
    parameters = (model.parameters or 0) / 1e9
    published = {b.name: published_em(row, _conditions(settings, b, reports[b.name], parameters)) for b in benchmarks}
    described = {
        name: BenchmarkReport.about(
            reports[name], index=headers[name]["index"], questions=headers[name]["questions"], published=one
        )
        for name, one in published.items()
    }
    return EvalReport(
        benchmarks=described,
        avg=macro_average(reports, published_average(row, published)),
        complete=not any(report.failed_searches for report in reports.values()),
        model=headers[benchmarks[0].name]["model"],
        decoding=Decoding(agent.settings.temperature, agent.seed, settings.samples),
        rollout=agent.record() | {"capacity": agent.engine.capacity, "computed_in": model.computed_in},
        run=str(folder),
    )


def write_report(folder: Path, report: EvalReport) -> None:
    write_atomic(folder / "report.json", to_json(report.to_json(), indent=1) + "\n")
    write_atomic(folder / "report.md", markdown(report))


def _corpus(index: OpenIndex) -> dict[str, Any]:
    manifest = index.manifest
    if manifest is None:
        return {"corpus_digest": None, "passages": None, "retriever": None}
    return {
        "corpus_digest": manifest.corpus_digest,
        "passages": manifest.passages,
        "retriever": manifest.retriever,
    }


def _conditions(settings: EvalSettings, benchmark: Benchmark, report: Report, parameters: float) -> Conditions:
    corpus = _corpus(benchmark.index)
    return Conditions(
        benchmark.name,
        report.overall.n,
        corpus["passages"],
        corpus["retriever"],
        settings.top_k,
        settings.max_searches,
        settings.temperature,
        parameters,
    )
