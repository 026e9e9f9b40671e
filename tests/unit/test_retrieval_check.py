"""Recall and answer-hit at k, worked by hand on a scripted retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.retrieval_corpora import TOWNS, stored, write_corpus

from dgpo_cli.core.types import Hit, Passage, Question
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval import base
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.check import check_integrity, measure, self_recall
from dgpo_cli.retrieval.open import OpenIndex, open_index


class InOrder:
    """Every query gets the passages as they stand."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._hits = [Hit(passage, 1.0 / rank, rank) for rank, passage in enumerate(passages, start=1)]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._hits[:k] for _ in queries]


def asked(
    *, ids: tuple[str, ...] = (), titles: tuple[str, ...] = (), answers: tuple[str, ...] = ("nothing",)
) -> Question:
    return Question("q", "?", answers, "set", supporting_titles=titles, supporting_ids=ids)


def test_recall_and_answer_hit_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_AT_ONCE", 2)
    index = OpenIndex("scripted", InOrder(TOWNS), None, None)  # a, b, c, d, e
    questions = [
        asked(ids=("a", "c")),  # recall@1 1/2, @2 1/2, @5 1
        asked(ids=("b",), titles=("Vesapo",)),  # ids come first: @1 0, @2 1, @5 1
        asked(titles=("Mira Holt", "Nowhere")),  # @1 0, @2 0, @5 1/2
        asked(answers=("the Mayor of Vesapo!",)),  # no gold; the answer stands in the first passage
        asked(answers=("weavers", "x")),  # no gold; in the fifth
    ]
    quality = measure(index, questions, [1, 2, 5])
    assert (quality.questions, quality.with_gold) == (5, 3)
    assert quality.recall == pytest.approx({1: 0.5 / 3, 2: 1.5 / 3, 5: 2.5 / 3})
    assert quality.answer_hit == pytest.approx({1: 1 / 5, 2: 1 / 5, 5: 2 / 5})


@pytest.mark.parametrize(
    "contents",
    ['"Cafe\u0301"\r\nis a bar.', ' "Caf\u00e9"  \nis a bar.', '"Caf\u00e9"\ris a bar.', "Caf\u00e9\u00a0\nis a bar."],
)
def test_titles_match_whatever_stands_around_them(contents: str) -> None:
    index = OpenIndex("scripted", InOrder([Passage("1", contents)]), None, None)
    assert measure(index, [asked(titles=("Caf\u00e9 ",))], [1]).recall == {1: 1.0}
    assert measure(index, [asked(titles=("caf\u00e9",))], [1]).recall == {1: 0.0}, "case is part of a title"
    assert measure(index, [asked(ids=(" 1",))], [1]).recall == {1: 1.0}


@pytest.mark.parametrize("gold", ["---", "A", "The", ")"])
def test_no_passage_holds_an_answer_of_nothing(gold: str) -> None:
    index = OpenIndex("scripted", InOrder(TOWNS), None, None)
    assert measure(index, [asked(answers=(gold,))], [5]).answer_hit == {5: 0.0}


def test_questions_without_answers_have_no_share_of_hits() -> None:
    index = OpenIndex("scripted", InOrder(TOWNS), None, None)
    quality = measure(index, [asked(ids=("a",), answers=()), asked(answers=("river",))], [1])
    assert (quality.recall, quality.answer_hit) == ({1: 1.0}, {1: 1.0})
    assert measure(index, [asked(ids=("a",), answers=())], [1]).answer_hit == {}


def test_unanswerable_questions_count_in_neither_share() -> None:
    index = OpenIndex("scripted", InOrder(TOWNS), None, None)
    hard = asked(ids=("gone",), answers=("Not in the documents",))
    quality = measure(index, [hard, asked(ids=("a",), answers=("river",))], [1])
    assert (quality.questions, quality.with_gold) == (2, 1)
    assert (quality.recall, quality.answer_hit) == ({1: 1.0}, {1: 1.0})


def test_without_gold_passages_there_is_no_recall() -> None:
    quality = measure(OpenIndex("scripted", InOrder(TOWNS), None, None), [asked(answers=("river",))], [1, 3])
    assert (quality.recall, quality.answer_hit) == ({}, {1: 1.0, 3: 1.0})


def test_own_words_by_hand(tmp_path: Path) -> None:
    """A scripted order: "a" stands first, "b" second, and so on, whatever is asked."""
    store = stored(tmp_path, [*TOWNS, Passage("again", TOWNS[0].contents)])
    index = OpenIndex("scripted", InOrder(TOWNS), None, store)
    assert self_recall(index, [1, 2, 5]) == (6, pytest.approx({1: 2 / 6, 2: 3 / 6, 5: 1.0}))


def test_own_words_are_the_first_twelve_of_the_text_and_the_sample_is_even(tmp_path: Path) -> None:
    passages = [Passage(str(n), f'"T"\n{n} ' + " ".join("abcdefghijklmn")) for n in range(1_000)]
    asked: list[str] = []

    class Asked(InOrder):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            asked.extend(queries)
            return super().search(queries, k)

    index = OpenIndex("scripted", Asked(passages[:1]), None, stored(tmp_path, passages))
    assert self_recall(index, [1]) == (200, {1: 1 / 200})
    assert asked == [f"{n} a b c d e f g h i j k" for n in range(0, 1_000, 5)]


def test_only_a_folder_can_be_checked(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="is a server"):
        check_integrity(open_index("http://127.0.0.1:9"))
    build_index(write_corpus(tmp_path / "c.jsonl"), tmp_path / "i")
    calls: list[tuple[int, int]] = []
    assert check_integrity(open_index(tmp_path / "i"), lambda done, total: calls.append((done, total))) == 5
    assert calls == [(0, 5)]
