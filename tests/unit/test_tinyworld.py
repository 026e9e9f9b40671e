"""The offline world: the same everywhere, nothing to remember, everything to read."""

import hashlib
from dataclasses import replace

import pytest
from tests.offline import ROLLOUT

from dgpo_cli.core.text import exact_match
from dgpo_cli.core.types import Hit
from dgpo_cli.formats.tags import TAGS, TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.offline.demonstrations import write_demonstrations, write_reading_exercises
from dgpo_cli.offline.world.demonstrator import Demonstrator, Fault, query
from dgpo_cli.offline.world.names import ENDINGS, STARTS
from dgpo_cli.offline.world.tokenizer import build_tokenizer
from dgpo_cli.offline.world.world import KINDS, SPLITS, WorldSize, build_world, shuffled
from dgpo_cli.training.teacher.trajectory_files import read_trajectories

RIGHT = Fault(by_kind={})


@pytest.fixture(scope="module")
def world():
    return build_world(0)


@pytest.fixture(scope="module")
def codec():
    return Codec(build_tokenizer(), TINYWORLD)


class Titles:
    """A perfect search engine: the passage whose title stands in the query."""

    def __init__(self, world):
        self.passages = {p.title: p for p in world.passages}

    def search(self, queries, k):
        words = [query.split()[0] if query else "" for query in queries]
        return [[Hit(self.passages[w], 1.0, 1)] if w in self.passages else [] for w in words]


def names_of(world, split):
    hops = [hop for question in world.questions[split] for hop in world.hops[question.id]]
    return {hop.subject for hop in hops} | {hop.answer for hop in hops}


def test_the_world_of_a_seed_is_the_same_on_every_machine(world):
    def digest(made):
        text = "\n".join(p.contents for p in made.passages)
        text += "\n".join(f"{q.id} {q.text} {q.answers}" for split in SPLITS for q in made.questions[split])
        return hashlib.sha256(text.encode()).hexdigest()

    assert digest(build_world(0)) == digest(world) != digest(build_world(1))


def test_it_is_large_enough(world):
    assert len(world.passages) >= 1_000
    assert len(world.questions["test"]) >= 500
    assert len({world.kind(q).name for q in world.questions["test"]}) == len(KINDS) >= 6
    assert {q.hops for q in world.questions["test"]} == {1, 2}
    for split in SPLITS:
        answers = [q.answers[0] for q in world.questions[split]]
        assert max(answers.count(a) for a in set(answers)) < 0.05 * len(answers)  # no answer is worth guessing


def test_splits_share_no_entity_but_every_piece_of_a_name(world, codec):
    names = {split: names_of(world, split) for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not names[split] & names[other]
    seen = {token for split in ("demonstrations", "train") for name in names[split] for token in ids(codec, name)}
    for split in ("validation", "test"):
        assert {token for name in names[split] for token in ids(codec, name)} <= seen


def ids(codec, text):
    return codec.tokenizer(text, add_special_tokens=False).input_ids


def test_a_name_is_two_tokens_wherever_it_stands(codec):
    for start in STARTS[::7]:
        for ending in ENDINGS[::31]:
            name = start + ending
            expected = [codec.tokenizer.convert_tokens_to_ids(start), codec.tokenizer.convert_tokens_to_ids(ending)]
            assert ids(codec, name) == expected
            inside = ids(
                codec,
                f'<search>{name} born</search><information>Doc 1(Title: "{name}") Born in {name}, studied at {name}.',
            )
            assert sum(inside[i : i + 2] == expected for i in range(len(inside))) == 4


def test_tags_are_one_token_and_text_comes_back_exactly(world, codec):
    for tag in TAGS.markers:
        assert len(ids(codec, tag)) == 1
    for passage in world.passages[::200]:
        assert codec.decode(ids(codec, passage.contents)) == passage.contents
    for question in world.questions["test"][::200]:
        assert codec.decode(codec.prompt_ids(question.text).ids) == f"{question.text}\n"


def test_passages_name_their_subject_in_the_title_alone(world):
    assert all(passage.title not in passage.text for passage in world.passages)


def play(world, reader, question, fault=RIGHT):
    """The answer of a scripted reader that looks things up in `world` and knows `reader`'s plan."""
    demonstrator, library, results = Demonstrator(reader, fault), Titles(world), []
    for _ in range(4):
        text = demonstrator.turn(question, results)
        if "<answer>" in text:
            return text.partition("<answer>")[2].partition("</answer>")[0]
        asked = text.partition("<search>")[2].partition("</search>")[0]
        results.append([hit.passage for hit in library.search([asked], 1)[0]])
    raise AssertionError(f"{question.id} never answered")


def share_right(world, reader, questions, fault=RIGHT):
    return sum(exact_match(play(world, reader, q, fault), q.answers) for q in questions) / len(questions)


@pytest.mark.slow
def test_a_reader_answers_everything_and_only_by_reading(world):
    """The control: with the texts under other titles the same reader is right on fewer than 5 % of the questions."""
    questions = world.questions["test"][:1000]
    assert share_right(world, world, questions) == 1.0
    assert share_right(shuffled(world), world, questions) < 0.05


def test_the_fault_is_systematic(world):
    questions = world.questions["test"]
    faulty = [q for q in questions if world.kind(q).name == "star-school"]
    sound = [q for q in questions if world.kind(q).name == "director-school"]
    always = Fault(by_kind={"star-school": 1.0})
    assert share_right(world, world, faulty, always) < 0.02 and share_right(world, world, sound, always) == 1.0
    some = share_right(world, world, faulty, Fault(by_kind={"star-school": 0.75}))
    assert 0.1 < some < 0.4


def test_demonstrations_and_reading_exercises_are_trajectories(codec, tmp_path):
    small = build_world(5, WorldSize(demonstrations=12, train=4, validation=4, test=4))
    questions = small.questions["demonstrations"]
    settings = replace(ROLLOUT, top_k=1)
    shared = {"codec": codec, "retriever": Titles(small), "settings": settings}
    write_demonstrations(Demonstrator(small, RIGHT), questions, tmp_path / "d.jsonl", **shared)
    made = read_trajectories(tmp_path / "d.jsonl").trajectories
    assert [t.question.id for t in made] == [q.id for q in questions]
    assert all(t.score.correct and len(t.searches) == t.question.hops for t in made)
    write_reading_exercises(small, questions, tmp_path / "r.jsonl", **shared)
    read = read_trajectories(tmp_path / "r.jsonl").trajectories
    assert len(read) == sum(q.hops == 1 for q in questions)
    for t in read:
        text = codec.decode(t.token_ids)
        assert "<search>" not in text and text.endswith(f"</information><answer>{t.question.answers[0]}</answer>")
        assert codec.decode([i for i, w in zip(t.token_ids, t.written, strict=True) if w]).startswith("<answer>")
        assert t.searches[0].query == query(small.hops[t.question.id][0])
