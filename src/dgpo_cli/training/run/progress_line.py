"""A training run while it works: its figures in a line, and now and then one of its episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dgpo_cli.agent.transcript import hits, outcome
from dgpo_cli.core.figures import percent
from dgpo_cli.core.schema import is_number
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question
from dgpo_cli.training.source import Roll

# The first of each group that a run logs is shown; `eval_em` and `eval_nll` are added with the best so far.
_KL = {
    "teacher_k1_wrong": "KL on wrong answers",
    "gated_reverse_kl": "KL where it acts",
    **dict.fromkeys(("reverse_kl", "forward_kl", "kl_to_target", "kl", "behavior_kl"), "KL"),
}
EPISODE_EVERY_S = 300.0  # ours, between two episodes that are shown


class TrainingLine:
    """The newest value of what matters in a run, from what it logs."""

    def __init__(self) -> None:
        self._newest: dict[str, Any] = {}
        self._best: dict[str, float] = {}

    def log(self, metrics: Mapping[str, Any]) -> None:
        metrics = {name: value for name, value in metrics.items() if is_number(value)}
        self._newest |= metrics
        for name, better in (("eval_em", max), ("eval_nll", min)):
            if name in metrics:
                self._best[name] = better(self._best.get(name, metrics[name]), metrics[name])

    def __str__(self) -> str:
        """Such as "reward 0.42, EM 45.0 % (best 47.1 %), KL on wrong answers 0.012, 1.4 searches, 812 tokens/s"."""
        seen = self._newest
        kl = next((name for name in _KL if name in seen), "kl")
        figures: list[tuple[str, Callable[[float], str]]] = [
            ("reward", lambda x: f"reward {x:.2f}"),
            ("nll", lambda x: f"loss {x:.3f}"),
            ("eval_em", lambda x: f"EM {percent(x)} (best {percent(self._best['eval_em'])})"),
            ("eval_nll", lambda x: f"validation loss {x:.3f} (best {self._best['eval_nll']:.3f})"),
            (kl, lambda x: f"{_KL[kl]} {x:.3f}"),
            ("entropy", lambda x: f"entropy {x:.2f}"),
            ("searches", lambda x: f"{x:.1f} searches"),
            ("valid_actions", lambda x: f"{percent(x)} valid actions"),
            ("tokens_per_second", lambda x: f"{x:,.0f} tokens/s"),
        ]
        return ", ".join(show(seen[name]) for name, show in figures if name in seen)


def best_validation(best: float | None, rows: Iterable[Mapping[str, Any]]) -> str:
    """The best validation of a run that logged `rows`, to be put behind other text; "" without one.

    It shows the measure that chose the weights: EM, else the loss, whose score is its negative.
    """
    if best is None:
        return ""
    by_em = any("eval_em" in row for row in rows)
    return f", best validation EM {percent(best)}" if by_em else f", best validation loss {-best:.4f}"


def glimpses(roll: Roll, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Roll:
    """`roll`, which also says one of its episodes now and then: the first at once."""
    told: float | None = None

    def rolled(pairs: Sequence[tuple[Question, int]]) -> list[Trajectory]:
        nonlocal told
        made = roll(pairs)
        if made and (told is None or clock() - told >= EPISODE_EVERY_S):
            told = clock()
            say(glimpse(made[0]))
        return made

    return rolled


def glimpse(trajectory: Trajectory) -> str:
    """One episode in a few lines: the question, each search with what came first, the answer."""
    lines = [f"an episode: {trajectory.question.text}"]
    lines += [
        f"  searched: {' '.join(call.query.split()) or '(nothing)'} -> {hits(call)[0]}" for call in trajectory.searches
    ]
    if trajectory.invalid_actions:
        lines.append(f"  turns without an action: {trajectory.invalid_actions}")
    score = trajectory.score
    verdict = "" if score is None else f" ({'right' if score.correct else 'wrong'}, reward {score.total:.2f})"
    lines.append(f"  answered: {' '.join(outcome(trajectory).split())}{verdict}")
    return "\n".join(lines)
