"""A small invented world: people, films and towns, one passage each, and questions of one or two hops about them.

A passage names its subject in the title alone, so an answer can only be had by finding the right passage and reading
it. Train, validation and test questions are about different people, films, towns and schools, whose names are new
combinations of syllables that all occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dgpo_cli.core.types import Passage, Question
from dgpo_cli.tinyworld.names import words

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class WorldSize:
    """People per split; films and towns follow. The defaults give about 6,000 passages."""

    train: int = 2_000
    validation: int = 250
    test: int = 700
    films_per_person: float = 0.7
    towns_per_person: float = 0.35


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a question: look up `subject`, read `relation`, find `answer`."""

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A form of question. `relations` are read one after the other, each on what the one before gave."""

    name: str
    text: str  # with {subject}
    relations: tuple[str, ...]


KINDS: tuple[Kind, ...] = (
    Kind("birthplace", "Where was {subject} born?", ("birthplace",)),
    Kind("school", "Where did {subject} study?", ("school",)),
    Kind("director", "Who directed {subject}?", ("director",)),
    Kind("star", "Who stars in {subject}?", ("star",)),
    Kind("founder", "Who founded {subject}?", ("founder",)),
    Kind("director-birthplace", "Where was the director of {subject} born?", ("director", "birthplace")),
    Kind("director-school", "Where did the director of {subject} study?", ("director", "school")),
    Kind("star-birthplace", "Where was the star of {subject} born?", ("star", "birthplace")),
    Kind("star-school", "Where did the star of {subject} study?", ("star", "school")),
    Kind("founder-birthplace", "Where was the founder of {subject} born?", ("founder", "birthplace")),
)
KIND_OF = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class World:
    passages: tuple[Passage, ...]
    questions: dict[str, tuple[Question, ...]]  # by split
    hops: dict[str, tuple[Hop, ...]]  # by question id: how it is answered

    def kind(self, question: Question) -> Kind:
        return KIND_OF[question.id.split("/")[1]]


def build_world(seed: int = 0, size: WorldSize | None = None) -> World:
    """The same world for a seed on every machine."""
    size = size or WorldSize()
    vocabulary = words(random.Random(f"tinyworld names {seed}"))
    passages: list[Passage] = []
    questions: dict[str, tuple[Question, ...]] = {}
    hops: dict[str, tuple[Hop, ...]] = {}
    for split in SPLITS:
        facts = _facts(random.Random(f"tinyworld {split} {seed}"), vocabulary, getattr(size, split), size)
        passages += facts.passages(len(passages))
        made = list(_ask(split, facts))
        random.Random(f"tinyworld questions {split} {seed}").shuffle(made)
        questions[split] = tuple(question for question, _ in made)
        hops |= {question.id: steps for question, steps in made}
    order = list(range(len(passages)))
    random.Random(f"tinyworld order {seed}").shuffle(order)
    renumbered = tuple(Passage(str(i), passages[place].contents) for i, place in enumerate(order))
    return World(renumbered, questions, hops)


def shuffled(world: World, seed: int = 0) -> World:
    """A control: every text under another title of its kind, so reading gives wrong answers and memory no advantage."""
    rng = random.Random(f"tinyworld shuffled {seed}")
    by_form: dict[str, list[int]] = {}
    for place, passage in enumerate(world.passages):
        by_form.setdefault(passage.text.split()[0], []).append(place)
    moved = list(world.passages)
    for places in by_form.values():
        rng.shuffle(places)
        for place, other in zip(places, places[1:] + places[:1], strict=True):
            passage = world.passages[place]
            moved[place] = Passage.from_title(passage.id, passage.title, world.passages[other].text)
    return replace(world, passages=tuple(moved))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is true in one split: relation -> subject -> answer."""

    people: Sequence[str]
    films: Sequence[str]
    towns: Sequence[str]
    relations: dict[str, dict[str, str]]

    def passages(self, first_id: int) -> list[Passage]:
        relation = self.relations
        texts = [
            *((p, f"Born in {relation['birthplace'][p]}, studied at {relation['school'][p]}.") for p in self.people),
            *((f, f"Film directed by {relation['director'][f]}, starring {relation['star'][f]}.") for f in self.films),
            *((t, f"Town in {relation['region'][t]}, founded by {relation['founder'][t]}.") for t in self.towns),
        ]
        return [Passage.from_title(str(first_id + i), title, text) for i, (title, text) in enumerate(texts)]


def _facts(rng: random.Random, vocabulary: Iterator[str], count: int, size: WorldSize) -> _Facts:
    people = list(islice(vocabulary, count))
    films = list(islice(vocabulary, int(count * size.films_per_person)))
    towns = list(islice(vocabulary, int(count * size.towns_per_person)))
    schools = list(islice(vocabulary, max(2, count // 5)))
    regions = list(islice(vocabulary, max(2, count // 20)))
    return _Facts(
        people,
        films,
        towns,
        {
            "birthplace": {p: rng.choice(towns) for p in people},
            "school": {p: rng.choice(schools) for p in people},
            "director": {f: rng.choice(people) for f in films},
            "star": {f: rng.choice(people) for f in films},
            "founder": {t: rng.choice(people) for t in towns},
            "region": {t: rng.choice(regions) for t in towns},
        },
    )


def _ask(split: str, facts: _Facts) -> Iterator[tuple[Question, tuple[Hop, ...]]]:
    for kind in KINDS:
        for number, subject in enumerate(facts.relations[kind.relations[0]]):
            steps: list[Hop] = []
            for relation in kind.relations:
                about = steps[-1].answer if steps else subject
                steps.append(Hop(about, relation, facts.relations[relation][about]))
            yield (
                Question(
                    id=f"{split}/{kind.name}/{number}",
                    text=kind.text.format(subject=subject),
                    answers=(steps[-1].answer,),
                    qa_set="tinyworld",
                    hops=len(steps),
                    supporting_titles=tuple(step.subject for step in steps),
                ),
                tuple(steps),
            )
