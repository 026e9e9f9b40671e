"""Search-R1's score with a format term (arXiv 2503.09516 and its follow-up 2505.15117; qa_em_format.py).

It contains the exact match, so as a reward of its own it is `-o reward.em=0 -o reward.format=1`.
"""

from __future__ import annotations

import re

from dgpo_cli.core.protocol import TAG_TOKENS
from dgpo_cli.core.text import contains_answer
from dgpo_cli.core.types import Trajectory
from dgpo_cli.rewards import exact_match

STRUCTURE = 0.2  # Search-R1 v0.3 scripts: a valid structure around a wrong answer, or what a right one loses without
ANSWERED = 0.1  # likewise: an answer, wrong, in no valid structure
RETRIEVED = 0.0  # likewise: added where the structure is valid and a gold answer was read

_TAGS = re.compile("|".join(map(re.escape, TAG_TOKENS)))
_INFORMATION = re.compile(r"<information>(.*?)</information>", re.DOTALL)
# (state, tag) to the next state; any other tag ends the matter. Text may stand inside blocks only.
_MOVES = {
    ("start", "<think>"): "in think",
    ("in think", "</think>"): "after think",
    ("after think", "<search>"): "in search",
    ("in search", "</search>"): "after search",
    ("after search", "<information>"): "in information",
    ("in information", "</information>"): "start",
    ("after think", "<answer>"): "in answer",
    ("in answer", "</answer>"): "end",
}


def has_valid_structure(text: str) -> bool:
    """Whether a response is think, then any number of (search, information, think), then answer, and no text between.

    `text` is the whole response, observations included.
    """
    state, place = "start", 0
    for tag in _TAGS.finditer(text):
        if not state.startswith("in ") and text[place : tag.start()].strip():
            return False
        state, place = _MOVES.get((state, tag[0]), ""), tag.end()
        if not state:
            return False
    return state == "end" and not text[place:].strip()


def part(
    trajectory: Trajectory,
    text: str,
    *,
    structure: float = STRUCTURE,
    answered: float = ANSWERED,
    retrieved: float = RETRIEVED,
) -> float:
    """From 0 to 1: right and valid 1, right and invalid 1 - structure, wrong and valid `structure` (+ `retrieved`)."""
    valid = has_valid_structure(text)
    if exact_match.part(trajectory, text):
        return 1.0 if valid else 1.0 - structure
    if valid:
        read = any(contains_answer(block, trajectory.question.answers) for block in _INFORMATION.findall(text))
        return structure + retrieved * read
    return answered if trajectory.answer is not None else 0.0
