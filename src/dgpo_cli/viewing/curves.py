"""Learning curves: a picture for the terminal and a PNG. Plotting libraries are imported where they draw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dgpo_cli.core.records import write_atomic

Curves = Mapping[str, Sequence[tuple[float, float]]]
_MARKERS = "ox+*#@%&"


def terminal_chart(curves: Curves, *, x_label: str, y_label: str, width: int = 90, height: int = 20) -> str:
    """Points (x, y) by name as plain text of `width` by `height` characters."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    for place, (name, points) in enumerate(curves.items()):
        if points:
            marker = _MARKERS[place % len(_MARKERS)]
            signal = figure.signal([x for x, _ in points], [y for _, y in points], marker=marker)
            signal.label(name)
            signal.lines()
            figure.draw(signal)
    figure.label(x_label, "x")
    figure.label(y_label, "y")
    return str(plotext.uncolorize(str(figure.build())))


def save_chart(curves: Curves, path: Path, *, title: str, x_label: str, y_label: str) -> None:
    """The same as a PNG, y from 0 to 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    write_atomic(path, image.getvalue())
