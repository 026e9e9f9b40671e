"""How an agent says that the documents do not hold an answer, and the questions for which that is right.

It is an answer like any other, the same in every format, so that exact match, demonstrations and rewards need no other
rule. A question whose accepted answer it is is unanswerable.
"""

from __future__ import annotations

from dgpo_cli.core.text import normalize_answer
from dgpo_cli.core.types import Question

ABSTENTION = "not in the documents"
MAY_ABSTAIN = f'Where the documents do not hold the answer, answer "{ABSTENTION}".'


def abstains(answer: str | None) -> bool:
    return answer is not None and normalize_answer(answer) == normalize_answer(ABSTENTION)


def is_unanswerable(question: Question) -> bool:
    return bool(question.answers) and all(map(abstains, question.answers))
