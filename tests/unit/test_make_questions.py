"""Questions made of passages: what is drawn, what is asked, why a question falls, and that going on changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.retrieval_corpora import write_lines
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Passage
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.make_questions.candidate import Candidate, Fate, MadeKind, NameLink, QuestionTask, subject
from dgpo_cli.make_questions.draw import DocumentSplit, Drawn, document_of, draw
from dgpo_cli.make_questions.judge import by_text, found_by_index
from dgpo_cli.make_questions.links import links
from dgpo_cli.make_questions.make import RECORDS, make_questions
from dgpo_cli.make_questions.names import asked_for, names
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.make_questions.teacher import PLAIN, PlainAsker, Teacher
from dgpo_cli.make_questions.templates import Templates
from dgpo_cli.make_questions.texts import question_and_answer
from dgpo_cli.models.codec import Codec
from dgpo_cli.qa_sets import load_questions, read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import OpenIndex, open_index

VESAPO = Passage.from_title("a", "Vesapo", "Vesapo is a town on the Ona River in Kelda. Its mayor is Mira Holt.")
HOLT = Passage.from_title("b", "Mira Holt", "Mira Holt (born 4 May 1961) is a politician who studied in Orlen.")
ONA = Passage.from_title("c", "Ona River", "The Ona River is 84 km long and flows through Vesapo and Brask.")
BRASK = Passage.from_title("d", "Brask (town) - History", "Brask is a town that Aldous Finch founded in 1702.")
PLAIN_TALE = Passage.from_title("e", "A tale", "once there was a weaver who never slept.")
TOWNS = [VESAPO, HOLT, ONA, BRASK, PLAIN_TALE]
TRAIN_ONLY = DocumentSplit(0, {"test": 0, "validation": 0})


def index_of(passages: Sequence[Passage], folder: Path) -> OpenIndex:
    rows = [{"id": p.id, "contents": p.contents} for p in passages]
    build_index(write_lines(folder / "corpus.jsonl", rows), folder / "index")
    return open_index(folder / "index")


@pytest.fixture
def towns(tmp_path: Path) -> OpenIndex:
    return index_of(TOWNS, tmp_path)


def settings(**changes: object) -> MakeQuestionsSettings:
    return MakeQuestionsSettings(**({"index": "index", "no_model": True} | changes))  # type: ignore[arg-type]


def one_hop(passage: Passage, text: str, answer: str) -> Candidate:
    return Candidate(MadeKind.ONE_HOP, text, answer, (passage,))


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("Mira Holt (born 4 May 1961) studied in Orlen.", ["Mira Holt", "4 May 1961", "Orlen"]),
        ("The Duke of Kelda ruled from 1702 to 1,720 people.", ["Duke of Kelda", "1702", "1,720"]),
        ("It was built by J. R. Finch in the U.S. state of Orlen.", ["J. R. Finch", "U.S.", "Orlen"]),
        ("After World War I. It grew.", ["World War I."]),
        ("Nobody knows 7 weavers of the tale.", []),
        ("東京は1868年からの首都です。", []),
        ("The option `--wave` of `dgpo rl` and `Ona River` is for Kelda.", ["--wave", "dgpo rl", "Ona River", "Kelda"]),
        ("Neither `7` nor ` x ` nor ``weaver`` nor an open ` is code.", []),
    ],
)
def test_names_dates_and_numbers_of_a_sentence(sentence: str, found: list[str]) -> None:
    assert [span.text for span in asked_for(sentence)] == found
    assert all(sentence[span.start : span.end] == span.text for span in asked_for(sentence))


def test_a_word_that_only_begins_a_sentence_is_no_name() -> None:
    assert [span.text for span in names("Weavers came from Brask.")] == ["Brask"]


def test_documents_and_what_they_are_about() -> None:
    assert document_of(Passage.from_title("notes/may.txt#12", "May: Weather", "x")) == "notes/may.txt"
    assert document_of(BRASK) == "Brask (town)" and subject(BRASK) == "Brask"
    assert document_of(Passage.from_title("1", "Dale Polley -", "x")) == "Dale Polley"


# Notes of a folder: what they speak of has neither a title of its own nor capital letters.
SIZES = Passage.from_title("sizes.md#1", "Sizes", "A wave of `slots` fills the memory. Fewer of them: `dgpo fit`.")
FIT = Passage.from_title("cli.md#1", "Commands: `dgpo fit`", "With `dgpo fit --all` it reads `machine.toml` first.")
TABLE = Passage.from_title("table.md#1", "Table", "| `slots` | 16 | how many run at once |")
SLOTS = Passage.from_title("engine.md#1", "Engine", "Whoever waits has none of the `slots`, of which there are 16.")
WORDS = Passage.from_title("words.md#1", "Words", "The slots of the fair belong to weavers.")


def test_code_links_notes_by_heading_or_because_both_name_it(tmp_path: Path) -> None:
    def link(*others: Passage) -> NameLink | None:
        folder = tmp_path / str(len(others))
        folder.mkdir()
        index = index_of([SIZES, *others], folder)
        return links([Drawn(0, SIZES, "train")], TRAIN_ONLY, index.retriever)[0]

    assert link(SLOTS, TABLE, WORDS, FIT) == NameLink("dgpo fit", FIT, is_title=True, is_code=True), "the heading first"
    assert link(SLOTS, TABLE) == NameLink("slots", SLOTS, is_title=False, is_code=True)
    assert link(WORDS) is None, "a word is not the setting of that name"


def test_a_bridge_of_code_and_no_question_of_a_table() -> None:
    made = Templates(0).write(
        [
            QuestionTask(Drawn(0, SIZES, "train"), 2, NameLink("slots", SLOTS, is_title=False, is_code=True)),
            QuestionTask(Drawn(0, SIZES, "train"), 2, NameLink("dgpo fit", FIT, is_title=True, is_code=True)),
            QuestionTask(Drawn(0, TABLE, "train"), 1),
        ]
    )
    texts = [each.text for each in made if isinstance(each, Candidate)]
    asked = (
        'What fills the blank in "Whoever waits has none of the `[X]`, of which there are ____", which names [X] too?'
    )
    first = 'What fills the blank in "With `[X] --all` it reads `____` first", which is about [X] too?'
    assert texts == [
        f'[X] is left out of "A wave of `[X]` fills the memory", about Sizes. {asked}',
        f'[X] is left out of "Fewer of them: `[X]`", about Sizes. {first}',
    ]
    assert made[2] is Fate.NO_NAME


def test_every_document_gives_one_passage_before_any_gives_two_and_lies_on_one_side(tmp_path: Path) -> None:
    long = [Passage.from_title(f"long.txt#{n}", "Long", f"Piece {n}.") for n in range(1, 61)]
    short = [Passage.from_title(f"short{n}.txt#1", "Short", f"Text {n}.") for n in range(19)]
    index = index_of([*long, *short], tmp_path)
    assert index.passages is not None
    drawn, split = draw(index.passages, 25, validation=0.1, test=0.2, seed=3)
    documents = [document_of(each.passage) for each in drawn]
    assert len(set(documents[:20])) == 20, "each of the twenty documents once"
    assert set(documents[20:]) == {"long.txt"}
    assert len({each.row for each in drawn}) == 25
    sides = {document: split.side(document) for document in documents}
    assert Counter(sides.values()) == {"test": 4, "validation": 2, "train": 14}
    assert all(each.side == sides[document_of(each.passage)] for each in drawn)
    assert draw(index.passages, 25, validation=0.1, test=0.2, seed=3)[0] == drawn
    assert draw(index.passages, 25, validation=0.1, test=0.2, seed=4)[0] != drawn
    shares = draw(index.passages, 25, validation=0.0, test=0.01, seed=3)[1]
    assert Counter(shares.side(d) for d in set(documents)) == {"test": 1, "train": 19}, "one at least, none where none"


def test_a_link_is_another_document_of_the_same_side_its_title_first(towns: OpenIndex) -> None:
    found = links([Drawn(0, VESAPO, "train"), Drawn(4, PLAIN_TALE, "train")], TRAIN_ONLY, towns.retriever)
    assert found == [NameLink("Ona River", ONA, is_title=True), None]
    assert links([Drawn(0, VESAPO, "test")], TRAIN_ONLY, towns.retriever) == [None]


@pytest.mark.parametrize(
    ("candidate", "fate"),
    [
        (one_hop(VESAPO, "Who is the mayor of Vesapo?", "Aldous Finch"), Fate.NOT_IN_PASSAGE),
        (one_hop(VESAPO, "Who is the mayor of Vesapo?", "ira Hol"), Fate.NOT_IN_PASSAGE),
        (one_hop(VESAPO, "Is Vesapo a town?", "Yes"), Fate.LONG_ANSWER),
        (one_hop(VESAPO, "What is Vesapo?", "town on the Ona River in Kelda. Its mayor is Mira"), Fate.LONG_ANSWER),
        (one_hop(VESAPO, "What is it?", "---"), Fate.LONG_ANSWER),
        (one_hop(VESAPO, "Is Mira Holt its mayor?", "Mira Holt"), Fate.HOLDS_ANSWER),
        (one_hop(VESAPO, "Who is the mayor in the passage?", "Mira Holt"), Fate.NAMES_PASSAGE),
        (one_hop(VESAPO, "Who is the mayor according to this?", "Mira Holt"), Fate.NAMES_PASSAGE),
        (one_hop(VESAPO, "Who is the mayor in passage 1?", "Mira Holt"), Fate.NAMES_PASSAGE),
        (Candidate(MadeKind.TWO_HOP, "When was Mira Holt born?", "4 May 1961", (VESAPO, HOLT), hidden="Mira Holt"),
         Fate.NAMES_LINK),
    ],
)  # fmt: skip
def test_why_a_question_falls_by_its_text(candidate: Candidate, fate: Fate) -> None:
    assert by_text(candidate) is fate


def test_a_question_of_a_passage_about_a_passage_does_not_speak_of_it() -> None:
    title = Passage.from_title("f", "The Long Passage", "The Long Passage is a tunnel in Kelda.")
    judged = by_text(one_hop(title, "Where is The Long Passage?", "Kelda"))
    assert isinstance(judged, Candidate) and judged.sentence == "The Long Passage is a tunnel in Kelda."


def test_the_sentence_that_holds_the_answer_is_that_of_the_last_passage() -> None:
    judged = by_text(Candidate(MadeKind.TWO_HOP, "Where did the mayor of Vesapo study?", "Orlen", (VESAPO, HOLT)))
    assert isinstance(judged, Candidate)
    assert judged.sentence == "Mira Holt (born 4 May 1961) is a politician who studied in Orlen."


def test_the_index_must_find_every_passage_by_what_is_known(towns: OpenIndex) -> None:
    two_hop = Candidate(MadeKind.TWO_HOP, "When was the mayor of Vesapo born?", "4 May 1961", (VESAPO, HOLT))
    pronoun = one_hop(HOLT, "When was she born, and by whom?", "4 May 1961")
    unknown = Candidate(MadeKind.TWO_HOP, "Which town is on the Ona River in Kelda?", "1702", (VESAPO, BRASK))
    found = found_by_index([two_hop, pronoun, unknown], towns.retriever, 1)
    assert found == [True, True, False], "Brask is named by neither the question nor what it finds"
    lonely = one_hop(PLAIN_TALE, "Where did it end?", "weaver")
    assert found_by_index([lonely], towns.retriever, 1) == [False]


def task(passage: Passage, other: Passage | None = None, *, is_title: bool = True) -> QuestionTask:
    link = None if other is None else NameLink(subject(other), other, is_title=is_title)
    return QuestionTask(Drawn(0, passage, "train"), 1 if link is None else 2, link)


def test_questions_without_a_model() -> None:
    made = [Templates(seed).write([task(HOLT), task(VESAPO, HOLT)]) for seed in range(20)]
    one, two = ({each[place].text: each[place] for each in made} for place in (0, 1))  # type: ignore[union-attr]
    assert {each.kind for each in one.values()} == {MadeKind.CLOZE, MadeKind.TITLE}  # type: ignore[union-attr]
    assert {each.kind for each in two.values()} == {MadeKind.BRIDGE, MadeKind.WHICH_OF}  # type: ignore[union-attr]
    choices = {
        f'Which of {order} fills the blank in "____ is a town on the Ona River in Kelda"?'
        for order in ("Vesapo and Mira Holt", "Mira Holt and Vesapo")
    }
    assert {text for text, each in two.items() if each.kind is MadeKind.WHICH_OF} == choices  # type: ignore[union-attr]
    assert {two[text].answer for text in choices} == {"Vesapo"}  # type: ignore[union-attr]
    born = 'What fills the blank in "Mira Holt (born ____) is a politician who studied in Orlen", about Mira Holt?'
    assert one[born].answer == "4 May 1961"  # type: ignore[union-attr]
    bridge = (
        '[X] is left out of "Its mayor is [X]", about Vesapo. '
        'What fills the blank in "[X] (born 4 May 1961) is a politician who studied in ____", which is about [X] too?'
    )
    assert two[bridge].answer == "Orlen"  # type: ignore[union-attr]
    shared = Templates(0).write([task(VESAPO, HOLT, is_title=False)])[0]
    assert isinstance(shared, Candidate) and shared.kind is MadeKind.WHICH_OF, "a shared name leads nowhere"
    assert Templates(0).write([task(PLAIN_TALE)]) == [Fate.NO_NAME]
    table = Passage.from_title("t", "Run", f"Its digest in Orlen is {'10' * 200} as told.")
    assert Templates(0).write([task(table)]) == [Fate.NO_NAME]
    assert Templates(7).write([task(HOLT)]) == Templates(7).write([task(VESAPO), task(HOLT)])[1:]


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (" Where is Brask?\nAnswer: in Kelda.", ("Where is Brask?", "in Kelda")),
        (" Which state?\n\nANSWER:  **the U.S.**", ("Which state?", "the U.S.")),
        (' "Who founded it?"\nAnswer: "J. Finch Jr."\nQuestion: more', ("Who founded it?", "J. Finch Jr")),
        (" Brask is a town.\nAnswer: Brask", None),
        (" Where is Brask?", None),
        (" Where is Brask?\nAnswer: .", None),
        ("", None),
    ],
)
def test_how_a_reply_is_read(reply: str, read: tuple[str, str] | None) -> None:
    assert question_and_answer(reply) == read


ASKED = "When was the mayor of Vesapo born?"
BORN = Passage.from_title("b", "Mira Holt", "Mira Holt (born 4 May 1961) is a politician.")


def teacher(answers: dict[str, str], *, written: str = ASKED) -> Teacher:
    """It answers by which of the two passages it has been shown: "", "a", "b" or "ab"."""

    def script(prompt: str, read: Sequence[str]) -> str:
        if "Write " in prompt:
            return f" {written}\n\n"
        shown = ("a" if "its mayor is" in prompt.lower() else "") + ("b" if "(born 4 May" in prompt else "")
        return f" {answers.get(shown, 'unknown')}\n\n"

    codec = Codec(bpe_tokenizer(chat=True), PLAIN)
    engine = ScriptedEngine(codec, script)
    chosen = settings(no_model=False, teacher="scripted", max_tokens=4000, max_answer_tokens=200)
    return Teacher(PlainAsker(engine, codec, at_once=2, max_tokens=4000, seed=0), chosen)


@pytest.mark.parametrize(
    ("answers", "fate"),
    [
        ({"ab": "4 May 1961"}, None),
        ({"ab": "She was born on 4 May 1961."}, None),
        ({"ab": "The mayor of Vesapo, whose name is Mira Holt, was born on 4 May 1961."}, None),
        (
            {"ab": "Vesapo is a town on the Ona River in Kelda, and Mira Holt, born 4 May 1961, is its mayor"},
            Fate.UNREADABLE,
        ),
        ({"ab": "1961"}, Fate.UNREADABLE),
        ({"ab": "4 May 1961", "": "on 4 May 1961"}, Fate.KNOWN),
        ({"ab": "4 May 1961", "b": "4 May 1961"}, Fate.ONE_IS_ENOUGH),
        ({"ab": "4 May 1961", "a": "4 May 1961"}, Fate.ONE_IS_ENOUGH),
    ],
)
def test_a_teacher_must_answer_with_both_passages_and_with_nothing_less(
    answers: dict[str, str], fate: Fate | None
) -> None:
    asked = teacher(answers)
    (written,) = asked.write([task(VESAPO, BORN)])
    assert isinstance(written, Candidate)
    assert (written.text, written.answer, written.hidden) == (ASKED, "4 May 1961", "Mira Holt")
    assert asked.check([written]) == [fate]


def test_a_teacher_that_writes_no_question_or_has_no_room() -> None:
    assert teacher({}, written="I cannot.").write([task(HOLT)]) == [Fate.UNWRITTEN]
    endless = Passage.from_title("z", "Endless", "word " * 4000)
    assert teacher({}).write([task(endless), task(HOLT)])[0] is Fate.TOO_LONG


def test_a_teacher_chooses_the_answer_where_a_passage_names_nothing() -> None:
    written = teacher({}, written="Who never slept?\nAnswer: a weaver.").write([task(PLAIN_TALE), task(BORN)])
    assert [(each.text, each.answer) for each in written if isinstance(each, Candidate)] == [
        ("Who never slept?", "a weaver"),
        ("Who never slept?", "4 May 1961"),
    ]


def test_a_passage_is_not_a_template() -> None:
    trap = Passage.from_title("z", "{question} {text}", "Mira {title} (born 4 May 1961) {second_text}.")
    made = teacher({}).write([task(trap), task(trap, HOLT)])
    assert all(isinstance(each, Candidate) for each in made)


class Stopping(Templates):
    """Is interrupted before its `after`-th wave."""

    def __init__(self, after: int) -> None:
        super().__init__(0)
        self.left = after

    def write(self, tasks: Sequence[QuestionTask], progress: Progress | None = None) -> list[Candidate | Fate]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().write(tasks, progress)


def many(tmp_path: Path) -> OpenIndex:
    rows = [
        Passage.from_title(
            f"p{n}",
            f"Town {n:03}",
            f"Town {n:03} is a place of Kelda on Town {(7 * n) % 90:03}. Founded in {1700 + n}.",
        )
        for n in range(90)
    ]
    return index_of(rows, tmp_path)


def test_going_on_after_a_stop_at_any_place_gives_the_same_files(tmp_path: Path) -> None:
    index, chosen = many(tmp_path), settings(passages=80, wave=16)
    whole = make_questions(index, Templates(0), chosen, tmp_path / "whole")
    assert whole.kept and all(whole.files.values())
    content = {file.name: file.read_bytes() for file in sorted((tmp_path / "whole").iterdir())}
    assert set(content) == {RECORDS, "train.jsonl", "validation.jsonl", "test.jsonl"}
    for after in (0, 2):
        folder = tmp_path / f"stopped{after}"
        with pytest.raises(KeyboardInterrupt):
            make_questions(index, Stopping(after), chosen, folder)
        assert make_questions(index, Templates(0), chosen, folder).to_json() == whole.to_json()
        assert {file.name: file.read_bytes() for file in sorted(folder.iterdir())} == content
    lines = content[RECORDS].splitlines(keepends=True)
    for kept in (b"".join(lines[:5]), b"".join(lines[:41]) + lines[41][:30]):  # in the middle of a wave, and of a line
        (tmp_path / "killed").mkdir(exist_ok=True)
        (tmp_path / "killed" / RECORDS).write_bytes(kept)
        make_questions(index, Templates(0), chosen, tmp_path / "killed")
        assert {file.name: file.read_bytes() for file in sorted((tmp_path / "killed").iterdir())} == content


@pytest.mark.parametrize(
    "change", [{"fate": "LOST"}, {"fate": 3}, {"side": "none"}, {"hops": "1"}, {"question": []}, {"question": None}]
)
def test_a_damaged_record_of_a_candidate_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    index, chosen = many(tmp_path), settings(passages=20, wave=16)
    make_questions(index, Templates(0), chosen, tmp_path / "made")
    file = tmp_path / "made" / RECORDS
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    number = next(place for place, row in enumerate(rows) if row.get("fate") == "KEPT")
    rows[number] |= change
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"{RECORDS}:{number + 1}: not a record of made questions"):
        make_questions(index, Templates(0), chosen, tmp_path / "made")


def test_made_files_are_question_files_of_documents_that_no_other_side_has(tmp_path: Path) -> None:
    make_questions(many(tmp_path), Templates(0), settings(passages=90, test=0.3), tmp_path / "made")
    sides = {side: read_questions(tmp_path / "made" / f"{side}.jsonl") for side in ("train", "validation", "test")}
    titles = {side: {t for q in questions for t in q.supporting_titles} for side, questions in sides.items()}
    assert not titles["train"] & titles["test"] and not titles["train"] & titles["validation"]
    assert not titles["test"] & titles["validation"]
    assert {len(q.supporting_ids) == q.hops for questions in sides.values() for q in questions} == {True}
    texts = [q.text for questions in sides.values() for q in questions]
    assert len(set(texts)) == len(texts)
    assert load_questions("made", bench_dir=tmp_path / "made") == sides["test"]
    rows = [json.loads(line) for line in (tmp_path / "made/train.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["golden_answers"][0] in row["metadata"]["sentence"]


def test_the_same_words_are_asked_once(tmp_path: Path) -> None:
    twice = [Passage.from_title(str(n), "Vesapo", "Vesapo was founded in 1702.") for n in range(2)]
    made = make_questions(
        index_of(twice, tmp_path), Templates(0), settings(hops="1", validation=0.0, test=0.0), tmp_path / "made"
    )
    assert made.fates[1][Fate.KEPT] + made.fates[1][Fate.DUPLICATE] == 2
    assert made.fates[1][Fate.DUPLICATE] == 2 - len(read_questions(tmp_path / "made/train.jsonl"))


def test_nothing_kept_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no question is kept of 1 passages; 1 times: nothing in its sentence"):
        make_questions(index_of([PLAIN_TALE], tmp_path), Templates(0), settings(hops="1"), tmp_path / "made")


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": 0.6, "test": 0.4},
        {"passages": 0},
        {"top_k": 0},
        {"teacher": "m"},
        {"no_model": False},
        {"test": 1.5},
        {"teacher_8bit": True},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings(**wrong)
