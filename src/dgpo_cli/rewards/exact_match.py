"""The paper's reward: 1 where the answer matches a gold answer exactly after normalization, else 0."""

from __future__ import annotations

from dgpo_cli.core.text import exact_match
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, Score


def score(question: Question, trajectory: Trajectory) -> Score:
    """An episode without an answer is wrong. `parts` holds "em"."""
    correct = trajectory.answer is not None and exact_match(trajectory.answer, question.answers)
    return Score(total=float(correct), correct=correct, parts={"em": float(correct)})


def part(trajectory: Trajectory) -> float:
    return score(trajectory.question, trajectory).total
