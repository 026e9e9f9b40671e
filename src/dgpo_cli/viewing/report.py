"""The content of `dgpo report`: curves, evaluations side by side, and episodes to read.

Episodes come from the records that a run keeps: every answer of `dgpo eval`, every episode of `dgpo distill-data`, and
of training the last periodic evaluation and a sample of the rollouts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli import __version__
from dgpo_cli.core.figures import duration, p_value, percent, percent_range, points, points_range
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_list import spoken_model, status_of, summarize_runs
from dgpo_cli.core.run_metrics import measured
from dgpo_cli.core.run_names import find_run, short_names
from dgpo_cli.errors import ConfigError, DgpoError
from dgpo_cli.evaluation.compare import conditions
from dgpo_cli.evaluation.selective import COVERAGES
from dgpo_cli.evaluation.stats import paired_difference
from dgpo_cli.evaluation.tables import Cell, Table
from dgpo_cli.viewing.charts import Chart, Curve, charts, curves
from dgpo_cli.viewing.episode_text import ShownAttempt, ShownQuestion, attempt
from dgpo_cli.viewing.report_page import render
from dgpo_cli.viewing.run_records import SHOWN, RunRecords, open_run

if TYPE_CHECKING:
    from dgpo_cli.models.codec import Codec

LAST = 8  # runs of a page that names none: as many as there are colours


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """The page that was written."""

    path: str
    bytes: int
    runs: list[str]  # folders
    names: list[str]
    questions: int
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class ReportRun:
    """A run of the page."""

    name: str
    path: str
    logged: bool  # it has curves


@dataclass(frozen=True, slots=True)
class ReportQuestion(ShownQuestion):
    """A question with the attempts at it."""

    attempts: dict[str, ShownAttempt]  # by place of the run


@dataclass(frozen=True, slots=True)
class ReportContent:
    """The content of a page."""

    version: str
    created: str
    runs: list[ReportRun]
    summary: Table  # a row by run
    charts: list[Chart]
    curves: list[dict[str, Curve]]  # by run
    evaluations: Table  # a run is named by its place in these
    selective: Table
    pairs: Table
    warnings: list[str]
    questions: list[ReportQuestion]


def write_report(runs: Sequence[Path], target: Path, *, questions: int) -> WrittenReport:
    """Write the page of `runs`, by name or folder, to `target`; `questions` of each set can be read in it.

    Without runs it is about the last LAST that began. Raises DgpoError for what is no run folder.
    """
    found, damaged = ([find_run(path) or path for path in runs], []) if runs else _last_runs()
    opened = [open_run(path) for path in dict.fromkeys(path.resolve() for path in found)]
    for run, name in zip(opened, short_names([run.path for run in opened]), strict=True):
        run.name = name
    content = gather(opened, questions)
    content.warnings.extend(damaged)
    page = render(asdict(content), title=f"dgpo report: {', '.join(run.name for run in opened)}")
    write_atomic(target, page)
    return WrittenReport(
        path=str(target),
        bytes=len(page.encode()),
        runs=[str(run.path) for run in opened],
        names=[run.name for run in opened],
        questions=len(content.questions),
        warnings=content.warnings,
    )


def _last_runs() -> tuple[list[Path], list[str]]:
    """Those that can be read, and a line about those that cannot. Raises ConfigError if none can."""
    summaries = summarize_runs(Path())
    problems = {summary.name: summary.problem for summary in summaries if summary.status == "damaged"}
    made = [summary.path for summary in summaries if summary.status != "damaged" and summary.command in SHOWN]
    left_out = []
    if problems:
        name, problem = next(iter(problems.items()))
        left_out = [f"Left out, since damaged: {', '.join(problems)} ({name}: {problem})."]
    if not made:
        none = "no run below this folder has curves or episodes" if summaries else "there are no runs below this folder"
        raise ConfigError(
            left_out[0].rstrip(".") if left_out else none,
            hint="make some with `dgpo quickstart`, or name a RUN",
        )
    return made[-LAST:], left_out


def gather(runs: Sequence[RunRecords], limit: int) -> ReportContent:
    """`limit` questions of each set can be read."""
    asked, warnings = _questions(runs, limit)
    drawn = [curves(run.rows) for run in runs]
    return ReportContent(
        version=f"dgpo {__version__}",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[ReportRun(run.name, str(run.path), bool(run.rows)) for run in runs],
        summary=summary(runs),
        charts=charts(drawn),
        curves=drawn,
        evaluations=_evaluations(runs),
        selective=_selective(runs),
        pairs=_pairs(runs),
        warnings=[*alarms(runs), *_differing(runs), *warnings],
        questions=asked,
    )


def summary(runs: Sequence[RunRecords]) -> Table:
    """Each run in a row; the page puts its name before it."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        result = run.record.get("result") or {}
        steps = max((int(row["step"]) for row in run.rows), default=None)
        ems = [em for row in run.rows if (em := measured(row, "eval_em")) is not None]
        best = max(ems, default=measured(result, "em"))
        model = run.config.get("model") or run.config.get("student") or run.config.get("teacher")
        seconds = max((s for row in run.rows if (s := measured(row, "seconds")) is not None), default=None)
        rows.append(
            (
                run.record["command"],
                run.config.get("method"),
                None if model is None else spoken_model(str(model)),
                status_of(run.path, run.record),
                run.record["created"][:16].replace("T", " "),
                None if steps is None else f"{steps:,}",
                None if best is None else percent(best),
                None if seconds is None else duration(seconds),
            )
        )
    columns = ("run", "command", "method", "model", "status", "started (UTC)", "steps", "best EM", "training time")
    return Table("Runs", columns, tuple(rows))


def _evaluations(runs: Sequence[RunRecords]) -> Table:
    """Each question set of each run, which is named by its place."""
    rows: list[tuple[Cell, ...]] = []
    for place, run in enumerate(runs):
        for name, report in run.reports.items():
            groups = [("all", report.overall)]
            if len(report.by_hops) > 1:
                groups += [(str(hops), summary) for hops, summary in report.by_hops.items()]
            for hops, s in groups:
                interval = percent_range(s.em_interval.low, s.em_interval.high)
                shares = [percent(value) for value in (s.f1, s.answer_retrieved)]
                numbers = [f"{s.searches:.2f}", f"{s.written_tokens:.0f}", str(s.invalid_actions)]
                rows.append((place, name, hops, f"{s.n:,}", percent(s.em), interval, *shares, *numbers))
    columns = ("run", "question set", "hops", "n", "EM", "95 %", "F1", "answer retrieved", "searches")
    return Table("Evaluations", (*columns, "tokens written", "without action"), tuple(rows))


def _selective(runs: Sequence[RunRecords]) -> Table:
    """Wrong answers among the surest, of evaluations whose answers have a known probability."""
    rows: list[tuple[Cell, ...]] = [
        (place, name, percent(curve.aurc), *map(percent, curve.risk_at.values()))
        for place, run in enumerate(runs)
        for name, report in run.reports.items()
        if (curve := report.overall.selective) is not None
    ]
    columns = ("run", "question set", "AURC", *(f"{c} %" for c in COVERAGES))
    return Table("Wrong among the surest answers", columns, tuple(rows))


def _pairs(runs: Sequence[RunRecords]) -> Table:
    """Every two evaluations over the questions that both were asked."""
    rows: list[tuple[Cell, ...]] = []
    for first, second in combinations([run for run in runs if run.record["command"] == "eval"], 2):
        common = first.right.keys() & second.right.keys()
        if not common:
            continue
        paired = paired_difference({k: first.right[k] for k in common}, {k: second.right[k] for k in common})
        interval = points_range(paired.interval.low, paired.interval.high)
        counts = [str(paired.n), str(paired.worse), str(paired.better)]
        rows.append((first.name, second.name, *counts, points(paired.difference), interval, p_value(paired.p_value)))
    columns = ("A", "B", "questions", "only A right", "only B right", "B minus A (points)", "95 %", "p (sign test)")
    return Table("Two runs on the same questions", columns, tuple(rows))


def _differing(runs: Sequence[RunRecords]) -> list[str]:
    """Differences that make a comparison of evaluations unfair: settings, questions or corpora."""
    found: dict[str, list[str]] = {}
    sets = dict.fromkeys(name for run in runs for name in run.headers)
    for question_set in sets:
        sides = {run.name: conditions(run.headers[question_set]) for run in runs if question_set in run.headers}
        for setting in next(iter(sides.values())):
            values = [side[setting] for side in sides.values()]
            if any(value != values[0] for value in values):
                shown = "; ".join(f"{name}: {value}" for name, value in zip(sides, values, strict=True))
                found.setdefault(f"{setting} ({shown})", []).append(question_set)
    return [
        f"Not comparable as they stand: the evaluations{_over(where, sets)} differ in {what}."
        for what, where in found.items()
    ]


def _over(where: Sequence[str], sets: Collection[str]) -> str:
    """Of which question sets, where it is not all of them."""
    return "" if len(where) == len(sets) else f" of {', '.join(where)}"


def alarms(runs: Sequence[RunRecords]) -> list[str]:
    """Alarms of the collapse guard of training runs, and the reactions."""
    return [
        f"{run.name}, step {row['step']}: {row['alarm']} (mean {row['metric']} {row['mean']:.4g}, "
        f"threshold {row['threshold']:.4g}): {row['action']}."
        for run in runs
        for row in run.rows
        if "alarm" in row
    ]


def _questions(runs: Sequence[RunRecords], limit: int) -> tuple[list[ReportQuestion], list[str]]:
    """`limit` questions of each set, and as many rollouts, with every run's attempt; and what could not be shown.

    Which ones is a fixed draw by their keys, the same for every run; questions that more runs answered come first.
    """
    answered = Counter(key for run in runs for key in run.groups)
    groups = {key: group for run in runs for key, group in run.groups.items()}
    by_group: dict[str, list[str]] = {}
    for key in sorted(answered, key=lambda k: (-answered[k], hashlib.sha256(k.encode()).digest())):
        by_group.setdefault(groups[key], []).append(key)
    wanted = {key for keys in by_group.values() for key in keys[:limit]}
    warnings = [
        f"Of {len(keys):,} episodes of {name}, {limit} are shown; --questions takes more."
        for name, keys in by_group.items()
        if len(keys) > limit
    ]
    shown: dict[str, ReportQuestion] = {}
    for place, run in enumerate(runs):
        codec: Codec | None = None
        known = False
        for key, group, trajectory, header, tokens in run.episodes():
            if key not in wanted:
                continue
            if not known:
                codec, known = _codec(run, header, warnings), True
            entry = shown.setdefault(key, ReportQuestion.of(key, group, trajectory.question, attempts={}))
            entry.attempts[str(place)] = attempt(trajectory, codec, tokens)
    return list(shown.values()), warnings


def _codec(run: RunRecords, header: Mapping[str, Any], warnings: list[str]) -> Codec | None:
    """The codec of the tokenizer that the run kept, else of its model's; without one the page shows no text."""
    from dgpo_cli.formats.protocol import Protocol
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import kept_tokenizer, load_tokenizer
    from dgpo_cli.models.sources import resolve

    try:
        tokenizer = kept_tokenizer(run.path) or load_tokenizer(resolve(run.model))
        codec = Codec(tokenizer, Protocol.from_json(header["protocol"]))
    except DgpoError as error:
        reason = error.message
    else:
        if header.get("tokenizer") in (None, codec.digest):
            return codec
        reason = f"its tokens are not those of {run.model} as it is now"
    warnings.append(f"{run.name}: the text of its episodes cannot be shown ({reason}).")
    return None
