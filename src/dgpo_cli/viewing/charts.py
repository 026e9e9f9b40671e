"""Training curves of several runs as inline SVG, drawn by matplotlib.

Why matplotlib and not Plotly: a static picture of a few kilobytes needs no script, so the page's content security
policy can forbid every script but the page's own, and it is a dependency already. Plotly's script alone is 4.6 MB.

Text and axes take the page's text colour (`currentColor`), so that one picture serves a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpo_cli.core.schema import is_number

# Told apart on white and on near-black, and by readers who do not tell red from green (after Okabe and Ito 2008).
COLORS = ("#2f7ed8", "#e07b1f", "#1a9c78", "#c65a9d", "#8a6fd6", "#a88a00", "#3aa6c4", "#8a8f98")
_INK, _GRID = "#010203", "#040506"  # replaced by colours of the page

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Chart:
    metric: str
    title: str
    svg: str
    main: bool  # one of the curves that a reader looks at first


# What a metric is called to a reader. Those named here come first, in this order.
TITLES = {
    "eval_em": "Validation EM",
    "eval_nll": "Validation NLL (nats per token)",
    "reward": "Reward",
    "teacher_k1_wrong": "Log-ratio to the teacher, wrong answers (nats)",
    "gated_reverse_kl": "Reverse KL to the teacher, wrong answers (nats)",
    "behavior_kl": "KL to the policy that wrote the tokens (nats)",
    "kl": "KL (nats)",
    "reward_penalty": "KL penalty in the reward (per episode)",
    "entropy": "Entropy (nats per token)",
    "written_tokens": "Written tokens per episode",
    "searches": "Searches per episode",
    "eval_searches": "Searches per validation episode",
    "valid_actions": "Valid actions (share of turns)",
    "answered": "Answered (share of episodes)",
    "right_logprob": "Log-probability of right answers (per token)",
    "policy_loss": "Policy loss",
}


def charts(runs: Sequence[tuple[str, Rows]]) -> list[Chart]:
    """One chart for every number that some run logged; `runs` are (name, metric rows), coloured by their place."""
    logged = {
        name: None
        for _, rows in runs
        for row in rows
        for name, value in row.items()
        if name not in ("step", "eval_score") and is_number(value)
    }
    order = [name for name in TITLES if name in logged] + sorted(name for name in logged if name not in TITLES)
    return [Chart(name, TITLES.get(name, name), _draw(name, runs), name in TITLES) for name in order]


def points(rows: Rows, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric."""
    pairs = [(row["step"], row[metric]) for row in rows if is_number(row.get(metric)) and is_number(row.get("step"))]
    return [x for x, _ in pairs], [y for _, y in pairs]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and the `width` - 1 before it; of fewer at the beginning."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _draw(metric: str, runs: Sequence[tuple[str, Rows]]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": metric,
        "font.family": ["sans-serif"],
        "font.size": 9,
    }
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK)
    with rc_context(style | colors):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, rows) in enumerate(runs):
            steps, values = points(rows, metric)
            color = COLORS[place % len(COLORS)]
            if metric.startswith("eval_") or len(values) < 20:
                line = axes.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=3)
            else:
                axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.35, gid=f"curve-{place}-{metric}-each")
                line = axes.plot(steps, running_mean(values, len(values) // 20 + 1), color=color, linewidth=1.8)
            line[0].set_gid(f"curve-{place}-{metric}")
        axes.set_xlabel("step")
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        output = io.StringIO()
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = output.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
