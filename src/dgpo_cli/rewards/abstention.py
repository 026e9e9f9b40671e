"""Whether an answer could be trusted: right, or an honest "not in the documents" (ours).

As a reward of its own it is `-o reward.em=0 -o reward.abstention=1`. An agent that abstains after searches which found
nothing gets half of what a right answer gets, so that a guess pays where it is right more often than not. One that
abstains although it read the answer, or without a search, gets nothing.
"""

from __future__ import annotations

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.formats.abstention import abstains
from dgpo_cli.rewards import exact_match, retrieval_hit

HONEST = 0.5  # ours: the chance of being right from which on an answer is worth more than an abstention


def part(trajectory: Trajectory, *, honest: float = HONEST) -> float:
    """1 where the answer is right, on an unanswerable question that it is none; `honest` as above; else 0."""
    if exact_match.part(trajectory):
        return 1.0
    searched = any(call.hits for call in trajectory.searches)
    return honest if abstains(trajectory.answer) and searched and not retrieval_hit.part(trajectory) else 0.0
