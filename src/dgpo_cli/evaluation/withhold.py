"""Unanswerable questions, made by taking the passages that answer them out of the corpus.

They are asked of the rest, so that a search looks as it does for any other question and finds something near. Whether
the rest answers such a question all the same is looked for among the passages that its own words find.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.text import contains_answer, text_key
from dgpo_cli.core.types import Passage, Question, question_to_json
from dgpo_cli.errors import InputError
from dgpo_cli.formats.abstention import ABSTENTION
from dgpo_cli.retrieval.base import search_many
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import OpenIndex, open_index

LOOKED_AT = 10  # passages per question, ours


@dataclass(frozen=True, slots=True)
class Withheld:
    """The result of `withhold`, and the number of questions that it left out."""

    passages: int  # taken out of the corpus
    unanswerable: int
    answerable: int
    still_answered: int  # chosen, but the rest of the corpus holds the answer near
    lost: int  # not chosen, but a passage that they need is gone
    without_gold: int  # could not be chosen, since they name no passage that the corpus holds


def withhold(
    opened: OpenIndex, questions: Sequence[Question], share: float, folder: Path, *, seed: int = 0,
    progress: Progress | None = None,
) -> Withheld:  # fmt: skip
    """`folder`/corpus.jsonl without some passages, its index, and `folder`/made.jsonl, in which about `share` of
    the questions are unanswerable by it.

    Of the gold passages of a chosen question those go that hold its answer, or all where none does. Raises InputError
    where no question names a gold passage that the index holds.
    """
    store, manifest = opened.passages, opened.manifest
    if store is None or manifest is None:
        raise InputError(f"{opened.location} does not tell its passages", hint="give --index of an index folder")
    gold = _gold_passages(store, questions)
    if not gold:
        raise InputError(
            f"none of {len(questions)} questions names a passage that {opened.location} holds",
            hint="give questions with supporting_ids or supporting_titles of this corpus",
        )
    drawn = sorted(gold)
    random.Random(seed).shuffle(drawn)
    chosen = set(drawn[: max(1, round(share * len(questions)))])
    hard = [question for question in questions if question.key in chosen]
    out = {passage.id for question in hard for passage in _answering(question, gold[question.key])}
    kept = [question for question in questions if not any(p.id in out for p in gold.get(question.key, ()))]
    corpus = folder / "corpus.jsonl"
    write_jsonl_atomic(corpus, ({"id": p.id, "contents": p.contents} for p in store if p.id not in out))
    build_index(
        corpus, folder / "index", retriever=manifest.retriever, settings=manifest.settings, overwrite=True,
        progress=progress,
    )  # fmt: skip
    near = search_many(open_index(folder / "index").retriever, [q.text for q in hard], LOOKED_AT)
    gone = [q for q, hits in zip(hard, near, strict=True) if not _answered(q, (hit.passage for hit in hits))]
    made = [replace(question, answers=(ABSTENTION,)) for question in gone]
    order = {question.key: place for place, question in enumerate(questions)}
    written = sorted([*kept, *made], key=lambda question: order[question.key])
    write_jsonl_atomic(folder / "made.jsonl", map(question_to_json, written))
    return Withheld(
        passages=len(out),
        unanswerable=len(made),
        answerable=len(kept),
        still_answered=len(hard) - len(made),
        lost=len(questions) - len(kept) - len(hard),
        without_gold=sum(question.key not in gold for question in questions),
    )


def _gold_passages(store: Iterable[Passage], questions: Sequence[Question]) -> dict[str, list[Passage]]:
    """Gold passages in the corpus by question; questions without one are left out."""
    by_id: dict[str, list[str]] = {}
    by_title: dict[str, list[str]] = {}
    for question in questions:
        for gold in question.gold_keys:
            (by_id if question.supporting_ids else by_title).setdefault(gold, []).append(question.key)
    found: dict[str, list[Passage]] = {}
    for passage in store:
        for key in by_id.get(text_key(passage.id), []) + by_title.get(text_key(passage.title), []):
            found.setdefault(key, []).append(passage)
    return found


def _answering(question: Question, gold: Sequence[Passage]) -> Sequence[Passage]:
    """The passages that hold the answer; all if none does, as for a yes or no."""
    return [passage for passage in gold if contains_answer(passage.contents, question.answers)] or gold


def _answered(question: Question, passages: Iterable[Passage]) -> bool:
    return any(contains_answer(passage.contents, question.answers) for passage in passages)
