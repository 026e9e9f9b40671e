"""An evaluation's report (the JSON object of `dgpo eval`) as tables, for a terminal or a Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_markdown(self) -> str:
        """GitHub's form; a bar inside a cell is escaped."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        return f"### {self.title}\n\n{text}\n"


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The scores, then (where hop counts are known) EM by hop count, then what went wrong, if anything did."""
    result = [_scores(report)]
    hops = [
        (name, int(count), group["n"], group["em"], _interval(group), group["f1"], group["searches"])
        for name, benchmark in report["benchmarks"].items()
        for count, group in benchmark["hops"].items()
    ]
    if hops:
        result.append(Table("By hop count", ("benchmark", "hops", "n", "EM", "95 %", "F1", "searches"), tuple(hops)))
    result.append(_behaviour(report))
    return result


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before quoting a number: decoding, terms, and why the paper's row is not comparable."""
    decoding = report["decoding"]
    kind = "greedy decoding" if decoding["temperature"] == 0 else f"sampling at temperature {decoding['temperature']:g}"
    lines = [
        f"Decoding: {kind}, seed {decoding['seed']}.",
        "95 %: interval of the EM; substr.: a gold answer inside the answer; retrieved: in a retrieved passage.",
    ]
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, benchmark in report["benchmarks"].items():
        published = benchmark["published"]
        if published is not None and not published["comparable"]:
            by_reason.setdefault(tuple(published["reasons"]), []).append(name)
        if benchmark["failed_searches"]:
            lines.append(
                f"{name}: {benchmark['failed_searches']} of {benchmark['asked']} questions failed to search "
                f"({benchmark['failure']}) and are not counted; the same command asks them again."
            )
    for reasons, names in by_reason.items():
        lines.append(f"* not comparable with the paper ({', '.join(names)}): {'; '.join(reasons)}.")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    title = f"# Evaluation of {report['model']['name']}\n"
    parts = [table.to_markdown() for table in tables(report)]
    return "\n".join([title, *parts, *(f"- {note}" for note in notes(report)), ""])


def _scores(report: Mapping[str, Any]) -> Table:
    published = next((b["published"] for b in report["benchmarks"].values() if b["published"] is not None), None)
    columns = ["benchmark", "n", "EM", "95 %", "F1", "substr.", "retrieved", "searches"]
    if published is not None:
        columns.append(published["row"])
    names = ("f1", "substring", "answer_retrieved", "searches")
    rows: list[tuple[Cell, ...]] = []
    for name, benchmark in report["benchmarks"].items():
        row = [name, benchmark["n"], benchmark["em"], _interval(benchmark), *(benchmark[n] for n in names)]
        rows.append((*row, *_published(published is not None, benchmark["published"])))
    if len(rows) > 1:
        avg = report["avg"]
        count = sum(benchmark["n"] for benchmark in report["benchmarks"].values())
        row = ["average", count, avg["em"], _interval(avg), *(avg[n] for n in names)]
        rows.append((*row, *_published(published is not None, avg["published"])))
    return Table("Results", tuple(columns), tuple(rows))


def _published(shown: bool, published: Mapping[str, Any] | None) -> Sequence[Cell]:
    if not shown:
        return ()
    if published is None:
        return (None,)
    return (f"{published['em']:.3f}" + ("" if published["comparable"] else " *"),)


def _behaviour(report: Mapping[str, Any]) -> Table:
    stops = sorted({stop for benchmark in report["benchmarks"].values() for stop in benchmark["stops"]})
    columns = ("benchmark", *stops, "failed searches", "invalid actions", "truncated observations", "tokens written")
    rows = tuple(
        (
            name,
            *(b["stops"].get(stop, 0) for stop in stops),
            b["failed_searches"],
            b["invalid_actions"],
            b["truncated_observations"],
            b["written_tokens"],
        )
        for name, b in report["benchmarks"].items()
    )
    return Table("How episodes ended", columns, rows)


def _interval(group: Mapping[str, Any]) -> str:
    return f"{group['em_interval']['low']:.3f}-{group['em_interval']['high']:.3f}"


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell).replace("|", "\\|")
