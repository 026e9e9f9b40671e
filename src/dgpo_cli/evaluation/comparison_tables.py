"""Two evaluations side by side, for a terminal."""

from __future__ import annotations

from dgpo_cli.core.figures import p_value, percent, percent_range, points, points_range
from dgpo_cli.evaluation.compare import Comparison, SettingDifference
from dgpo_cli.evaluation.stats import Interval
from dgpo_cli.evaluation.tables import Cell, Table


def heading(comparison: Comparison) -> list[str]:
    """The names of A and B, and before any number whether they may be compared."""
    lines = []
    for side, one in (("A", comparison.a), ("B", comparison.b)):
        unfinished = ", not finished" if one.finished is False else ""
        weights = str(one.model["weights"])
        lines.append(f"{side}: {one.path} ({one.model['name']}, weights {weights}{unfinished})")
    if not comparison.comparable:
        lines.append("NOT COMPARABLE as they stand: other things than the model differ.")
        lines += [_difference(one, len(comparison.benchmarks)) for one in comparison.settings]
    return lines


def _difference(one: SettingDifference, benchmarks: int) -> str:
    where = "" if len(one.benchmarks) == benchmarks else f" ({', '.join(one.benchmarks)})"
    if one.setting == "corpus" and one.a is None and one.b is None:
        return f"  corpus: not told by the server{where}"
    return f"  {one.setting}: {_value(one.a)} in A, {_value(one.b)} in B{where}"


def _value(value: object) -> str:
    return "none" if value is None else str(value)[:48]


def table(comparison: Comparison) -> Table:
    """EM of both and B minus A with its interval; a star where the two are not comparable."""
    star = "" if comparison.comparable else " *"
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            one.n,
            _em(one.em_a, one.em_a_interval),
            _em(one.em_b, one.em_b_interval),
            f"{points(one.difference)}{star}",
            points_range(one.interval.low, one.interval.high),
            one.only_a,
            one.only_b,
            p_value(one.p_value),
        )
        for name, one in comparison.benchmarks.items()
    ]
    if len(rows) > 1:
        avg = comparison.avg
        count = sum(one.n for one in comparison.benchmarks.values())
        difference = f"{points(avg.difference)}{star}"
        rows.append(
            (
                "average",
                count,
                _em(avg.em_a, avg.em_a_interval),
                _em(avg.em_b, avg.em_b_interval),
                difference,
                points_range(avg.interval.low, avg.interval.high),
                None,
                None,
                None,
            )
        )
    columns = (
        "benchmark",
        "n",
        "EM of A (95 %)",
        "EM of B (95 %)",
        "B - A, points",
        "95 %",
        "only A",
        "only B",
        "sign test p",
    )
    return Table("Paired comparison", columns, tuple(rows))


def notes(comparison: Comparison) -> list[str]:
    """What the columns count, and which questions were left out."""
    lines = ["only A, only B: questions that this one alone got right, or right more often over several samples."]
    for name, one in comparison.benchmarks.items():
        dropped = [
            (one.dropped_a, "only in A"),
            (one.dropped_b, "only in B"),
            (one.changed, "asked otherwise"),
        ]
        if any(count for count, _ in dropped):
            parts = ", ".join(f"{count} {what}" for count, what in dropped if count)
            lines.append(f"{name}: questions left out: {parts}.")
    if not comparison.comparable:
        lines.append("* not comparable: see the settings above.")
    return lines


def _em(em: float, interval: Interval) -> str:
    return f"{percent(em)} ({percent_range(interval.low, interval.high)})"
