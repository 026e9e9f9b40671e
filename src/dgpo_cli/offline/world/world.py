"""A small invented world: people, films and towns, one passage each, and questions of one or two hops about them.

A passage names its subject in the title alone, so an answer can only be had by finding the right passage and reading
it. The splits are about different people, films, towns and schools, whose names are new combinations of pieces that
all occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dgpo_cli.core.types import Passage, Question
from dgpo_cli.offline.world.names import names

SPLITS = ("demonstrations", "train", "validation", "test")  # the first is the teacher's schooling
QA_SET = "tinyworld"
MAX_RESULTS = 3  # passages in one observation that the tokenizer has phrases for

FORMS = {  # what the passages of each sort of thing say
    "person": "Born in {birthplace}, studied at {school}.",
    "film": "Film directed by {director}, starring {star}.",
    "town": "Town in {region}, founded by {founder}.",
}


@dataclass(frozen=True, slots=True)
class WorldSize:
    """People per split; films and towns follow. The defaults give about 7,000 passages."""

    demonstrations: int = 1_500
    train: int = 1_500
    validation: int = 120
    test: int = 300
    films_per_person: float = 0.7
    towns_per_person: float = 0.35


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a question: look up `subject`, read `relation`, find `answer`."""

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A form of question. `relations` are read one after the other, each on what the one before gave."""

    name: str
    text: str  # with {subject}
    relations: tuple[str, ...]


KINDS: tuple[QuestionKind, ...] = (
    QuestionKind("birthplace", "Where was {subject} born?", ("birthplace",)),
    QuestionKind("school", "Where did {subject} study?", ("school",)),
    QuestionKind("director", "Who directed {subject}?", ("director",)),
    QuestionKind("star", "Who stars in {subject}?", ("star",)),
    QuestionKind("founder", "Who founded {subject}?", ("founder",)),
    QuestionKind("director-birthplace", "Where was the director of {subject} born?", ("director", "birthplace")),
    QuestionKind("director-school", "Where did the director of {subject} study?", ("director", "school")),
    QuestionKind("star-birthplace", "Where was the star of {subject} born?", ("star", "birthplace")),
    QuestionKind("star-school", "Where did the star of {subject} study?", ("star", "school")),
    QuestionKind("founder-birthplace", "Where was the founder of {subject} born?", ("founder", "birthplace")),
)
KIND_OF = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class World:
    """The passages and questions of a seed."""

    passages: tuple[Passage, ...]
    questions: dict[str, tuple[Question, ...]]  # by split
    hops: dict[str, tuple[Hop, ...]]  # by question id: how it is answered

    def kind(self, question: Question) -> QuestionKind:
        return KIND_OF[question.id.split("/")[1]]


def build_world(seed: int = 0, size: WorldSize | None = None) -> World:
    """The same world for a seed on every machine."""
    size = size or WorldSize()
    unused = names(random.Random(f"tinyworld names {seed}"))
    passages: list[Passage] = []
    questions: dict[str, tuple[Question, ...]] = {}
    hops: dict[str, tuple[Hop, ...]] = {}
    people = (size.demonstrations, size.train, size.validation, size.test)
    for split, count in zip(SPLITS, people, strict=True):
        facts = _facts(random.Random(f"tinyworld {split} {seed}"), unused, count, size)
        passages += facts.passages()
        made = list(_ask(split, facts))
        random.Random(f"tinyworld questions {split} {seed}").shuffle(made)
        questions[split] = tuple(question for question, _ in made)
        hops |= {question.id: steps for question, steps in made}
    random.Random(f"tinyworld order {seed}").shuffle(passages)
    numbered = tuple(Passage(str(number), passage.contents) for number, passage in enumerate(passages))
    return World(numbered, questions, hops)


def shuffled(world: World, seed: int = 0) -> World:
    """A control: every text under another title of its sort, so reading gives wrong answers and memory no advantage."""
    rng = random.Random(f"tinyworld shuffled {seed}")
    by_sort: dict[str, list[int]] = {}
    for place, passage in enumerate(world.passages):
        by_sort.setdefault(passage.text.split()[0], []).append(place)
    moved = list(world.passages)
    for places in by_sort.values():
        rng.shuffle(places)
        for place, other in zip(places, places[1:] + places[:1], strict=True):
            passage = world.passages[place]
            moved[place] = Passage.from_title(passage.id, passage.title, world.passages[other].text)
    return replace(world, passages=tuple(moved))


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts of one split: relation -> subject -> answer."""

    subjects: dict[str, Sequence[str]]  # by sort of thing
    relations: dict[str, dict[str, str]]

    def passages(self) -> list[Passage]:
        made = []
        for sort, subjects in self.subjects.items():
            for subject in subjects:
                facts = {name: table[subject] for name, table in self.relations.items() if subject in table}
                made.append(Passage.from_title("", subject, FORMS[sort].format(**facts)))
        return made


def _facts(rng: random.Random, unused: Iterator[str], count: int, size: WorldSize) -> _Facts:
    people = _take(unused, count)
    films = _take(unused, int(count * size.films_per_person))
    towns = _take(unused, int(count * size.towns_per_person))
    schools = _take(unused, max(2, count // 5))
    regions = _take(unused, max(2, count // 20))
    return _Facts(
        {"person": people, "film": films, "town": towns},
        {
            "birthplace": {p: rng.choice(towns) for p in people},
            "school": {p: rng.choice(schools) for p in people},
            "director": {f: rng.choice(people) for f in films},
            "star": {f: rng.choice(people) for f in films},
            "region": {t: rng.choice(regions) for t in towns},
            "founder": {t: rng.choice(people) for t in towns},
        },
    )


def _take(unused: Iterator[str], count: int) -> list[str]:
    taken = list(islice(unused, count))
    if len(taken) < count:
        raise ValueError(f"the world is larger than there are names: {count - len(taken)} are missing")
    return taken


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
                    qa_set=QA_SET,
                    hops=len(steps),
                    supporting_titles=tuple(step.subject for step in steps),
                ),
                tuple(steps),
            )
