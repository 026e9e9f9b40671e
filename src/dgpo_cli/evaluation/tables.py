"""An evaluation's report as tables, for a terminal or a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgpo_cli.core.figures import percent, percent_range
from dgpo_cli.core.markdown import inline
from dgpo_cli.evaluation.beside_paper import PublishedEM
from dgpo_cli.evaluation.gold_context import GoldMode
from dgpo_cli.evaluation.report import EvalReport
from dgpo_cli.evaluation.selective import COVERAGES
from dgpo_cli.evaluation.stats import Interval
from dgpo_cli.evaluation.summary import Average, Summary

Cell = str | int | float | None
Rows = tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the names of the columns, and cells."""

    title: str
    columns: tuple[str, ...]
    rows: Rows

    def to_markdown(self) -> str:
        """GitHub's form; a bar inside a cell is escaped."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        return f"### {self.title}\n\n{text}\n"


def tables(report: EvalReport) -> list[Table]:
    """Scores, EM by hop count where it is known, retrieval, causes of errors, ends of episodes, ARCap if measured."""
    result = [_scores(report)]
    hops = [
        (name, int(count), group.n, percent(group.em), _interval(group), percent(group.f1), group.searches)
        for name, benchmark in report.benchmarks.items()
        for count, group in benchmark.hops.items()
    ]
    if hops:
        result.append(Table("By hop count", ("benchmark", "hops", "n", "EM", "95 %", "F1", "searches"), tuple(hops)))
    result += [_retrieval(report), _trust(report), *_selective(report), _errors(report), _behaviour(report)]
    if any(benchmark.arcap for benchmark in report.benchmarks.values()):
        result.append(_arcap(report))
    return result


def notes(report: EvalReport) -> list[str]:
    """Notes that a reader needs before quoting a number: decoding, terms, and why the paper's row is not comparable."""
    decoding = report.decoding
    kind = "greedy decoding" if decoding.temperature == 0 else f"sampling at temperature {decoding.temperature:g}"
    draws = f", {decoding.samples} draws a question" if decoding.samples > 1 else ""
    lines = [
        f"Decoding: {kind}, seed {decoding.seed}{draws}.",
        "95 %: interval of the EM; substr.: a gold answer inside the answer; the other terms: docs/evaluation.md.",
    ]
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, benchmark in report.benchmarks.items():
        published = benchmark.published
        if published is not None and not published.comparable:
            by_reason.setdefault(tuple(published.reasons), []).append(name)
        if benchmark.failed_searches:
            lines.append(
                f"{name}: {benchmark.failed_searches} of {benchmark.asked} questions failed to search "
                f"({benchmark.failure}) and are not counted; the same command asks them again."
            )
    for reasons, names in by_reason.items():
        lines.append(f"* not comparable with the paper ({', '.join(names)}): {'; '.join(reasons)}.")
    return lines + _arcap_notes(report)


def markdown(report: EvalReport) -> str:
    title = f"# Evaluation of {inline(report.model['name'])}\n"
    parts = [table.to_markdown() for table in tables(report)]
    return "\n".join([title, *parts, *(f"- {inline(note)}" for note in notes(report)), ""])


def _scores(report: EvalReport) -> Table:
    published = next((b.published for b in report.benchmarks.values() if b.published is not None), None)
    ks = list(report.avg.pass_at)
    columns = ["benchmark", "n", "EM", "95 %", *(f"pass@{k}" for k in ks), "F1", "substr.", "searches"]
    if published is not None:
        columns.append(published.row)
    rows: list[tuple[Cell, ...]] = []
    for name, benchmark in report.benchmarks.items():
        row = [name, benchmark.n, *_scores_of(benchmark, ks)]
        rows.append((*row, *_published(published is not None, benchmark.published)))
    if len(rows) > 1:
        avg = report.avg
        count = sum(benchmark.n for benchmark in report.benchmarks.values())
        row = ["average", count, *_scores_of(avg, ks)]
        rows.append((*row, *_published(published is not None, avg.published)))
    return Table("Results", tuple(columns), tuple(rows))


def _published(shown: bool, published: PublishedEM | None) -> Sequence[Cell]:
    if not shown:
        return ()
    if published is None:
        return (None,)
    return (percent(published.em) + ("" if published.comparable else " *"),)


def _scores_of(group: Summary | Average, ks: Sequence[str]) -> list[Cell]:
    at_k = [percent(group.pass_at.get(k)) for k in ks]
    return [
        percent(group.em),
        _interval(group),
        *at_k,
        *map(percent, (group.f1, group.substring)),
        group.searches,
    ]


def _retrieval(report: EvalReport) -> Table:
    columns = ("benchmark", "searches", "first hit", "answer retrieved", "evidence recall", "with gold passages")
    shares = ("first_hit", "answer_retrieved", "evidence_recall")
    rows: Rows = tuple(
        (name, b.searches, *(percent(getattr(b, n)) for n in shares), b.with_gold)
        for name, b in report.benchmarks.items()
    )
    return Table("What was retrieved", columns, rows)


def _trust(report: EvalReport) -> Table:
    """Shares of questions answered, of answers that were wrong, and of answers found in the passages read."""
    columns = ["benchmark", "answered", "wrong of these", "95 %", "in a passage", "in a gold passage"]
    held = any(b.unanswerable for b in report.benchmarks.values())
    columns += ["unanswerable", "told so", "told so of others"] if held else []
    rows: list[tuple[Cell, ...]] = []
    for name, b in report.benchmarks.items():
        interval = None if b.risk_interval is None else _range(b.risk_interval)
        shares = (percent(getattr(b, share)) for share in ("coverage", "risk"))
        row: list[Cell] = [name, *shares, interval, percent(b.supported), percent(b.gold_supported)]
        row += [b.unanswerable, percent(b.abstained_unanswerable), percent(b.abstained)] if held else []
        rows.append(tuple(row))
    return Table("Answers and their evidence", tuple(columns), tuple(rows))


def _selective(report: EvalReport) -> list[Table]:
    """The share of wrong answers among the surest; no table where no answer has a known probability."""
    rows: Rows = tuple(
        (name, percent(curve.aurc), *(percent(curve.risk_at[str(coverage)]) for coverage in COVERAGES))
        for name, b in report.benchmarks.items()
        if (curve := b.selective) is not None
    )
    columns = ("benchmark", "AURC", *(f"{coverage} %" for coverage in COVERAGES))
    return [Table("Wrong among the surest answers", columns, rows)] if rows else []


def _errors(report: EvalReport) -> Table:
    kinds = list(next(iter(report.benchmarks.values())).errors)
    rows: Rows = tuple(
        (name, sum(b.errors.values()), *(b.errors[kind] for kind in kinds)) for name, b in report.benchmarks.items()
    )
    return Table("Why answers were wrong", ("benchmark", "wrong", *(kind.replace("_", " ") for kind in kinds)), rows)


def _arcap(report: EvalReport) -> Table:
    """A row of ours and, where the paper has one, its own."""
    columns = ("benchmark", "whose", "asked with gold", "gold, no thinking", "gold, thinking", "first hit", "steps")
    rows: list[tuple[Cell, ...]] = []
    for name, benchmark in report.benchmarks.items():
        if benchmark.arcap is None:
            continue
        arcap, gold = benchmark.arcap, benchmark.arcap.gold
        first_hit = percent(arcap.first_hit)
        if arcap.first_hit_interval is not None:
            first_hit += f" ({_range(arcap.first_hit_interval)})"
        modes = [None if m is None else f"{percent(m.em)} ({_interval(m)})" for m in (gold.direct, gold.think)]
        rows.append((name, "measured", gold.questions, *modes, first_hit, arcap.steps))
        paper = arcap.published
        if paper is not None:
            modes = [f"{percent(share)} *" for share in (paper.direct, paper.think)]
            steps = None if paper.steps is None else f"{paper.steps:.2f} *"
            rows.append((name, paper.row, None, *modes, f"{percent(paper.first_hit)} *", steps))
    return Table("ARCap", columns, tuple(rows))


def _arcap_notes(report: EvalReport) -> list[str]:
    lines: list[str] = []
    reasons: dict[str, None] = {}
    for name, benchmark in report.benchmarks.items():
        if benchmark.arcap is None:
            continue
        gold, published = benchmark.arcap.gold, benchmark.arcap.published
        if gold.without_gold or gold.incomplete:
            lines.append(
                f"{name}, gold context: left out are {gold.without_gold} questions without known gold passages and "
                f"{gold.incomplete} with one that the index does not hold ({gold.missing_passages} passages)."
            )
        reasons |= dict.fromkeys(published.reasons if published is not None else ())
    if reasons:
        lines.append(f"* ARCap, not comparable with the paper: {'; '.join(reasons)}.")
    return lines


def _behaviour(report: EvalReport) -> Table:
    stops = sorted({stop for benchmark in report.benchmarks.values() for stop in benchmark.stops})
    columns = (
        "benchmark",
        "valid format",
        *stops,
        "failed searches",
        "invalid actions",
        "truncated observations",
        "tokens written",
    )
    rows: Rows = tuple(
        (
            name,
            percent(b.format_valid),
            *(b.stops.get(stop, 0) for stop in stops),
            b.failed_searches,
            b.invalid_actions,
            b.truncated_observations,
            b.written_tokens,
        )
        for name, b in report.benchmarks.items()
    )
    return Table("How episodes ended", columns, rows)


def _interval(group: Summary | Average | GoldMode) -> str:
    return _range(group.em_interval)


def _range(interval: Interval) -> str:
    return percent_range(interval.low, interval.high)


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell).replace("|", "\\|")
