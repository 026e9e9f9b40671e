"""Whether any search of the episode returned a passage that holds a gold answer, after normalization.

What the retriever returned counts, also where the observation was cut before the answer.
"""

from __future__ import annotations

from dgpo_cli.core.text import contains_answer
from dgpo_cli.core.trajectory import Trajectory


def part(trajectory: Trajectory) -> float:
    answers = trajectory.question.answers
    hits = (hit for call in trajectory.searches for hit in call.hits)
    return float(any(contains_answer(hit.passage.contents, answers) for hit in hits))
