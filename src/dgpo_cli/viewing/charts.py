"""Training curves of runs as numbers that the page draws: which there are, what they are called, and their points.

The page draws them itself, as a report and while a run goes on: 60 lines of its script stand for a plotting library,
which would have to draw each picture again after every step, or bring megabytes of script along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dgpo_cli.core.run_metrics import measured
from dgpo_cli.core.schema import is_number

# Distinguishable on white and on near-black, and by readers who do not see red from green (after Okabe and Ito 2008).
COLORS = ("#2f7ed8", "#e07b1f", "#1a9c78", "#c65a9d", "#8a6fd6", "#a88a00", "#3aa6c4", "#8a8f98")
FEW, MOST = 20, 600  # points that are drawn one by one, and points of a curve; a chart is 440 units wide

Rows = Sequence[Mapping[str, Any]]

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


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of one metric, for all runs that logged it."""

    metric: str
    title: str
    main: bool  # a reader looks at it first


@dataclass(frozen=True, slots=True)
class Curve:
    """Steps and values of a metric of a run."""

    each: list[list[float]]  # of single steps, thinned
    mean: list[list[float]] | None  # the running mean where points are many


def charts(logged: Iterable[Collection[str]]) -> list[Chart]:
    """One for every number that some run logged; `logged` are the names by run."""
    names = dict.fromkeys(name for run in logged for name in run)
    order = [name for name in TITLES if name in names] + sorted(name for name in names if name not in TITLES)
    return [Chart(name, TITLES.get(name, name), name in TITLES) for name in order]


def curves(rows: Rows) -> dict[str, Curve]:
    """The curves of a run by metric."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if (step := measured(row, "step")) is not None:
            for name, value in row.items():
                if name not in ("step", "eval_score") and is_number(value):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(value)
    return {name: _curve(name, *points) for name, points in found.items()}


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and the `width` - 1 before it; of fewer at the beginning."""
    sums = [0.0, *accumulate(values)]
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]


def _curve(name: str, steps: list[float], values: list[float]) -> Curve:
    mean = None
    if not name.startswith("eval_") and len(values) >= FEW:
        mean = _points(
            steps, running_mean(values, len(values) // 20 + 1), range(0, len(values), 1 + len(values) // MOST)
        )
    return Curve(_points(steps, values, _extremes(values)), mean)


def _points(steps: Sequence[float], values: Sequence[float], places: Iterable[int]) -> list[list[float]]:
    chosen = sorted({*places, len(values) - 1})
    return [[steps[i] for i in chosen], [float(f"{values[i]:.6g}") for i in chosen]]


def _extremes(values: Sequence[float]) -> list[int]:
    """Places of at most MOST values: all, or the least and the greatest of each stretch, so that no spike is lost."""
    if len(values) <= MOST:
        return list(range(len(values)))
    width = -(-2 * len(values) // MOST)
    stretches = [range(start, min(start + width, len(values))) for start in range(0, len(values), width)]
    return [choose(stretch, key=values.__getitem__) for stretch in stretches for choose in (min, max)]
