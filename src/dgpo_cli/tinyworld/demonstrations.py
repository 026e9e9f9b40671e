"""Scripted episodes that the teacher is trained on, with a systematic fault that reward can correct.

The script looks one subject up after the other and reads the answer in what was retrieved. The fault: on questions of
some kinds a share of the demonstrations stops after the first hop and answers with what it found there. A teacher
trained on them makes the same mistake, so it is imperfect in a way that a student can unlearn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dgpo_cli.core.types import Passage, Question
from dgpo_cli.tinyworld.world import Hop, World

ASKED = {"birthplace": "born", "school": "studied", "director": "directed", "star": "starring", "founder": "founded"}
READ = {  # relation: words before and after its answer in a passage's text
    "birthplace": ("Born in ", ", studied"),
    "school": ("studied at ", "."),
    "director": ("directed by ", ", starring"),
    "star": ("starring ", "."),
    "founder": ("founded by ", "."),
}
PHRASES = (
    *(f" {word}" for word in ASKED.values()),
    *(f" {relation}" for relation in ASKED),
    " {} then {}.",
    " It is {}.",
    " Not found.",
    " unknown",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Share of faulty demonstrations by kind of question; kinds that are not named are always right."""

    by_kind: Mapping[str, float] = field(
        default_factory=lambda: {"star-birthplace": 0.6, "star-school": 0.6, "founder-birthplace": 0.6}
    )


def read_answer(hop: Hop, passages: Sequence[Passage]) -> str | None:
    """What the passage about the hop's subject says of its relation; None if it was not retrieved."""
    before, after = READ[hop.relation]
    for passage in passages:
        if passage.title == hop.subject and before in passage.text:
            return passage.text.partition(before)[2].partition(after)[0]
    return None


class Demonstrator:
    """Writes the turns of an episode. `turn` is asked once per turn with what was retrieved so far."""

    def __init__(self, world: World, fault: Fault, seed: int) -> None:
        self._world, self._fault, self._seed = world, fault, seed

    def stops_early(self, question: Question) -> bool:
        share = self._fault.by_kind.get(self._world.kind(question).name, 0.0)
        return random.Random(f"fault {self._seed} {question.id}").random() < share

    def turn(self, question: Question, results: Sequence[Sequence[Passage]]) -> str:
        """Text of the next turn, after `results` of the searches so far."""
        hops = self._world.hops[question.id]
        if not results:
            return f"<think> {self._plan(question)}.</think>" + self._search(hops[0].subject, hops[0].relation)
        hop = hops[len(results) - 1]
        found = read_answer(hop, results[-1])
        if found is None:
            return "<think> Not found.</think><answer> unknown</answer>"
        last = len(results) == len(hops) or self.stops_early(question)
        if last:
            return f"<answer> {found}</answer>"
        following = hops[len(results)]
        return f"<think> It is {found}.</think>" + self._search(found, following.relation)

    def _plan(self, question: Question) -> str:
        return " then ".join(self._world.kind(question).relations)

    def _search(self, subject: str, relation: str) -> str:
        return f"<search> {subject} {ASKED[relation]}</search>"
