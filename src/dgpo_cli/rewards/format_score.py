"""Search-R1's score with a format term (arXiv 2503.09516 and its follow-up 2505.15117; qa_em_format.py).

It contains the exact match, so used alone it is `-o reward.em=0 -o reward.format=1`.
"""

from __future__ import annotations

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.rewards import exact_match, retrieval_hit

STRUCTURE = 0.2  # Search-R1 v0.3 scripts: a valid structure around a wrong answer, or what a right one loses without
ANSWERED = 0.1  # likewise: an answer, wrong, in no valid structure
RETRIEVED = 0.0  # likewise: added where the structure is valid and a gold answer was retrieved


def has_valid_structure(trajectory: Trajectory) -> bool:
    """Whether every turn is a thought followed by an action and nothing else, and only the last one answers."""
    turns = trajectory.known_turns
    return trajectory.answers_last and all(turn.alone and turn.thought for turn in turns)


def part(
    trajectory: Trajectory, *, structure: float = STRUCTURE, answered: float = ANSWERED, retrieved: float = RETRIEVED
) -> float:
    """From 0 to 1: right and valid 1, right and invalid 1 - structure, wrong and valid `structure` (+ `retrieved`)."""
    valid = has_valid_structure(trajectory)
    if exact_match.part(trajectory):
        return 1.0 if valid else 1.0 - structure
    if valid:
        return structure + retrieved * retrieval_hit.part(trajectory)
    return answered if trajectory.answer is not None else 0.0
