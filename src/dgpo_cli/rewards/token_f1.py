"""Token F1 of the answer (SQuAD, Rajpurkar et al. 2016): partial credit for an answer that is nearly right."""

from __future__ import annotations

from dgpo_cli.core.text import f1
from dgpo_cli.core.trajectory import Trajectory


def part(trajectory: Trajectory) -> float:
    """0 without an answer."""
    return 0.0 if trajectory.answer is None else f1(trajectory.answer, trajectory.question.answers)
