"""Scripted episodes that the teacher is trained on, with a systematic fault that reward can correct.

The script looks one subject up after the other and reads the answer in what was retrieved. The fault: on questions of
some kinds a share of the demonstrations stops after the first hop and answers with what it found there. A teacher
trained on them makes the same mistake, so it is imperfect in a way that a student can unlearn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dgpo_cli.core.types import Passage, Question
from dgpo_cli.formats.tags import compact
from dgpo_cli.offline.world.world import FORMS, KINDS, Hop, World

ASKED = {"birthplace": "born", "school": "studied", "director": "directed", "star": "starring", "founder": "founded"}
_THOUGHT = "It is {}."
_NOT_FOUND = "Not found."
_UNKNOWN = "unknown"


def _plan(relations: Sequence[str]) -> str:
    return f"{' then '.join(relations)}."


SCRIPT_FORMS = (  # everything that the script writes, tags aside; {} stands for a name
    *(f"{{}} {word}" for word in ASKED.values()),
    *(_plan(kind.relations) for kind in KINDS),
    _THOUGHT,
    _NOT_FOUND,
    _UNKNOWN,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Share of faulty demonstrations by kind of question; kinds that are not named are always right."""

    by_kind: Mapping[str, float] = field(
        default_factory=lambda: {"star-birthplace": 0.75, "star-school": 0.75, "founder-birthplace": 0.75}
    )


def _pattern(relation: str) -> re.Pattern[str]:
    form = next(form for form in FORMS.values() if f"{{{relation}}}" in form)
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(form)))


_PATTERNS = {relation: _pattern(relation) for relation in ASKED}


def read_answer(hop: Hop, passages: Sequence[Passage]) -> str | None:
    """The answer in the passage about the hop's subject; None if the passage was not retrieved."""
    for passage in passages:
        match = _PATTERNS[hop.relation].fullmatch(passage.text)
        if passage.title == hop.subject and match is not None:
            return match[hop.relation]
    return None


class Demonstrator:
    """Writes the turns of an episode. `turn` is asked once per turn, with what was retrieved so far."""

    def __init__(self, world: World, fault: Fault, seed: int = 0) -> None:
        self._world, self._fault, self._seed = world, fault, seed

    def stops_early(self, question: Question) -> bool:
        share = self._fault.by_kind.get(self._world.kind(question).name, 0.0)
        return random.Random(f"fault {self._seed} {question.id}").random() < share

    def turn(self, question: Question, results: Sequence[Sequence[Passage]]) -> str:
        """Text of the next turn, after `results` of the searches so far."""
        hops = self._world.hops[question.id]
        if not results:
            plan = _plan(self._world.kind(question).relations)
            return compact(plan, "search", query(hops[0]))
        found = read_answer(hops[len(results) - 1], results[-1])
        if found is None:
            return compact(_NOT_FOUND, "answer", _UNKNOWN)
        if len(results) == len(hops) or self.stops_early(question):
            return compact("", "answer", found)
        return compact(_THOUGHT.format(found), "search", query(hops[len(results)]))


def query(hop: Hop) -> str:
    """The query of the script for a hop."""
    return f"{hop.subject} {ASKED[hop.relation]}"
