"""The work of `dgpo eval` once its settings are known: measure, compare, show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dgpo_cli.commands.common.going_on import going_on
from dgpo_cli.commands.common.options import show_settings, tell_run
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.engine.turnwise.model_server import ModelServer
    from dgpo_cli.evaluation.measured import MeasuredModel
    from dgpo_cli.evaluation.report import EvalReport
    from dgpo_cli.evaluation.suite import Benchmark, EvalSettings

_WITH_COMPARE = {"compare", "json", "quiet"}


def compare(console: Console, context: typer.Context, sides: tuple[str, str]) -> None:
    """Two earlier evaluations. Raises ConfigError for an option that would have no effect."""
    from dgpo_cli.evaluation import compare as comparing
    from dgpo_cli.evaluation.comparison_tables import heading, notes, table

    given = [name for name in context.params if is_given(context, name) and name not in _WITH_COMPARE]
    if given:
        raise ConfigError(
            f"--compare reads two finished evaluations, so --{given[0].replace('_', '-')} has no effect",
            hint="give --compare A B alone, or with --json",
        )
    result = comparing.compare(*(comparing.read_side(side) for side in sides))
    for line in heading(result):
        console.print(line)
    shown = table(result)
    console.table(shown.title, shown.columns, shown.rows)
    for note in notes(result):
        console.print(note)
    console.result(asdict(result))


def is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def show_plan(console: Console, settings: EvalSettings, benchmarks: Sequence[Benchmark], run: Path | None) -> None:
    """--dry-run: the settings and what would be asked. Raises ConfigError as `measure` before it loads the model."""
    from dgpo_cli.evaluation.gold_context import gold_contexts
    from dgpo_cli.models.sources import resolve

    _require_same(settings, benchmarks, run)
    source = resolve(settings.model)
    counts = {benchmark.name: len(benchmark.questions) for benchmark in benchmarks}
    result = show_settings(console, settings) | {"location": source.location, "num_questions": counts}
    columns, rows = (
        ["benchmark", "questions", "index"],
        [[b.name, counts[b.name], b.index.location] for b in benchmarks],
    )
    if settings.arcap:
        result["gold"] = {name: context.to_json() for name, context in gold_contexts(benchmarks).items()}
        columns.append("with gold context")
        rows = [[*row, result["gold"][row[0]]["questions"]] for row in rows]
    console.table("", columns, rows)
    console.result(result)


def _require_same(settings: EvalSettings, benchmarks: Sequence[Benchmark], run: Path | None) -> None:
    """Raises ConfigError where the run that would go on has other settings; what takes the weights to know is passed
    over.
    """
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import require_same
    from dgpo_cli.core.run_identity import Work
    from dgpo_cli.evaluation import measurement

    if run is not None:
        known = measurement.asked(settings, benchmarks)
        require_same(run, Work("eval", known, contents(known)), partly=True)


def measure(
    console: Console,
    settings: EvalSettings,
    benchmarks: Sequence[Benchmark],
    *,
    server: ModelServer | None,
    out: Path | None,
    resume: Path | None,
    fresh: bool,
    at_once: int | None = None,
) -> EvalReport:
    """Load the model, answer what is not answered yet, write and return the report.

    `at_once` questions go through the model together, where that is fewer than the settings say: it is no part of the
    run's identity, so that the same command goes on whatever memory is free by then.
    """
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.evaluation import measurement

    _require_same(settings, benchmarks, going_on(out, resume, fresh=fresh))
    model = _measured(settings, server)
    if model.raw is not None:
        console.warn(model.raw)
    identity = measurement.identity(settings, benchmarks, model)
    with RunDir.open("eval", identity, out=out, resume=resume, fresh=fresh, inputs=contents(identity)) as run:
        done, total = measurement.answered(run.path, benchmarks), measurement.num_draws(settings, benchmarks)
        tell_run(console, run, f": {done} of {total} answered")
        _, report = measurement.measure(run, settings, benchmarks, model, bar=console.progress, at_once=at_once)
        # With failed searches the run stays unfinished: the same command asks those questions again.
        if report.complete:
            run.finish({"em": report.avg.em, "benchmarks": {name: b.em for name, b in report.benchmarks.items()}})
    return report


def _measured(settings: EvalSettings, server: ModelServer | None) -> MeasuredModel:
    from dgpo_cli.engine.registry import IN_PROCESS
    from dgpo_cli.evaluation.measured import MeasuredModel
    from dgpo_cli.models.devices import load_frozen

    if server is not None:
        return MeasuredModel.served(server, settings.model, settings.format)
    # Other engines load the weights by themselves; here they only identify the model.
    where = settings.device if settings.engine == IN_PROCESS else "cpu"
    loaded = load_frozen(settings.model, device=where, precision=settings.precision, form=settings.format)
    return MeasuredModel.of(loaded)


def show_report(console: Console, report: EvalReport) -> None:
    from dgpo_cli.evaluation.tables import notes, tables

    for table in tables(report):
        console.table(table.title, table.columns, table.rows)
    for note in notes(report):
        console.print(note)
    console.print(f"report: {report.run}/report.md")
