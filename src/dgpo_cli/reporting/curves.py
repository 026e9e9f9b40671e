"""Learning curves: a picture for the terminal and a PNG. Heavy plotting libraries are imported where they draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Curves = Mapping[str, Sequence[tuple[float, float]]]


def terminal_chart(curves: Curves, *, x_label: str, y_label: str, width: int = 90, height: int = 20) -> str:
    """Points (x, y) by name as text of about `width` by `height` characters."""
    import plotext

    plotext.clear_figure()
    plotext.plotsize(width, height)
    plotext.theme("clear")
    for name, points in curves.items():
        if points:
            plotext.plot([x for x, _ in points], [y for _, y in points], label=name)
    plotext.xlabel(x_label)
    plotext.ylabel(y_label)
    return str(plotext.build())


def save_chart(curves: Curves, path: Path, *, title: str, x_label: str, y_label: str) -> None:
    """The same as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
