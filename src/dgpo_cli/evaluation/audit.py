"""Can a corpus and its index answer a set of questions at all? The ceiling that retrieval sets for exact match.

Agents are trained and judged on questions whose answer may stand nowhere in the corpus: arXiv 2605.27881 found 3,321
such questions in Search-R1's training set. An answer is looked for as evaluation looks for it: a normalized substring.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from dgpo_cli.core.figures import percent
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.text import contains_answer, is_empty_answer, normalize_answer, text_key
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Question
from dgpo_cli.evaluation.outcome import holds_answer
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.retrieval.base import Retriever, search_many
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.open import OpenIndex, open_index

_PASSAGES = 1_000  # joined to one text
_DEEPER = (5, 10, 20)
_GAIN = 0.05  # gain of a deeper search that justifies its longer episodes
_STEMMED_GAIN = 0.01
_SMALL = 200_000  # passages of which a second index is built on the spot


@dataclass(frozen=True, slots=True)
class Reach:
    """Ranks at which the answer of one question is found, from 1; None where no passage looked at holds it."""

    question: Question
    anywhere: bool
    by_question: int | None  # rank of the first passage that holds it, the question itself being the query
    by_titles: int | None  # best rank over searches for the titles of its gold passages

    @property
    def in_text(self) -> bool:
        """Whether a passage can state the answer: "yes" and "no" are concluded, and an unanswerable one is in none."""
        return not self.question.is_judged and not is_unanswerable(self.question)

    @property
    def hopeless(self) -> bool:
        """Nobody can find the answer in this corpus."""
        return self.in_text and not self.anywhere

    def within(self, k: int) -> bool:
        """Whether one of both kinds of query shows it among the first k; also where it need not be read."""
        return not self.in_text or any(rank is not None and rank <= k for rank in (self.by_question, self.by_titles))


@dataclass(frozen=True, slots=True)
class Audit:
    """Shares from 0 to 1, of all questions but for `by_titles`, which is of those that name titles."""

    questions: int
    yes_no: int  # questions that are answered by yes or no; nothing is looked up for them
    unanswerable: int  # nor for these, which are right where the agent says so
    with_titles: int
    anywhere: float
    in_depth: float
    in_k: float
    by_titles: float | None
    ceiling: float  # highest exact match of an agent that searches by these queries and reads k passages of each
    highest: float  # the same of an agent that could read the whole corpus


def search(
    retriever: Retriever, questions: Sequence[Question], depth: int, progress: Progress | None = None
) -> list[Reach]:
    """Search with every question and with its gold titles, `depth` passages each; `anywhere` is what was found so."""
    asked = [(question, question.text) for question in questions]
    asked += [(question, title) for question in questions for title in question.supporting_titles]
    results = search_many(retriever, [query for _, query in asked], depth, progress)
    ranks = [_rank(hits, question) for (question, _), hits in zip(asked, results, strict=True)]
    best: dict[str, int] = {}
    for (question, _), rank in zip(asked[len(questions) :], ranks[len(questions) :], strict=True):
        if rank is not None:
            best[question.key] = min(rank, best.get(question.key, rank))
    return [
        Reach(question, rank is not None or question.key in best, rank, best.get(question.key))
        for question, rank in zip(questions, ranks, strict=False)
    ]


def _rank(hits: Sequence[Hit], question: Question) -> int | None:
    return next((hit.rank for hit in hits if contains_answer(hit.passage.contents, question.answers)), None)


def read_through(passages: PassageStore, reached: Sequence[Reach], progress: Progress | None = None) -> list[Reach]:
    """Look for what searches did not find in every passage.

    Takes time in proportion to the corpus times the answers that it does not hold: one that was found is not looked
    for again.
    """
    wanted: dict[str, set[str]] = {}
    for each in reached:
        for answer in () if each.anywhere or not each.in_text else each.question.answers:
            if not is_empty_answer(answer):
                wanted.setdefault(normalize_answer(answer), set()).add(each.question.key)
    found: set[str] = set()
    for done, text in _texts(passages):
        for answer in [answer for answer in wanted if answer in text]:
            found |= wanted.pop(answer)
        if progress is not None:
            progress(done, len(passages))
        if not wanted:
            break
    return [replace(each, anywhere=each.anywhere or each.question.key in found) for each in reached]


def _texts(passages: PassageStore) -> Iterator[tuple[int, str]]:
    """Normalized passages, many in one text, with the number of passages so far; no answer reaches over the zeros."""
    for start in range(0, len(passages), _PASSAGES):
        rows = range(start, min(start + _PASSAGES, len(passages)))
        yield rows.stop, "\0".join(normalize_answer(passages[row].contents) for row in rows)


def summary(reached: Sequence[Reach], k: int, depth: int) -> Audit:
    def share(right: Iterable[bool], of: int) -> float:
        return sum(right) / of

    titled = [each for each in reached if each.question.supporting_titles and each.in_text]
    total = len(reached)
    return Audit(
        questions=total,
        yes_no=sum(each.question.is_judged for each in reached),
        unanswerable=sum(is_unanswerable(each.question) for each in reached),
        with_titles=len(titled),
        anywhere=share((each.in_text and each.anywhere for each in reached), total),
        in_depth=share((each.in_text and _to(each.by_question, depth) for each in reached), total),
        in_k=share((each.in_text and _to(each.by_question, k) for each in reached), total),
        by_titles=share((_to(each.by_titles, k) for each in titled), len(titled)) if titled else None,
        ceiling=share((each.within(k) for each in reached), total),
        highest=share((not each.hopeless for each in reached), total),
    )


def _to(rank: int | None, k: int) -> bool:
    return rank is not None and rank <= k


class Chance(StrEnum):
    """The evidence that was available to a wrong answer."""

    NONE = "no_chance"  # the corpus does not hold the answer
    UNFOUND = "not_found"  # it does, and no search of the episode returned it
    READ = "was_read"  # a passage that was read holds it, or none has to (`Reach.in_text`)


def chances(episodes: Iterable[Trajectory], reached: Sequence[Reach]) -> Counter[Chance]:
    """Wrong answers of a run by what they could have been made from; episodes of other questions are left out.

    A question is known by its id and its text: a set is called otherwise in a file of another name.
    """
    known = {_asked(each.question): each for each in reached}
    counted: Counter[Chance] = Counter()
    for episode in episodes:
        reach = known.get(_asked(episode.question))
        if reach is None or (episode.score is not None and episode.score.correct):
            continue
        if not reach.in_text or holds_answer(episode.searches, episode.question.answers):
            counted[Chance.READ] += 1
        else:
            counted[Chance.NONE if reach.hopeless else Chance.UNFOUND] += 1
    return counted


def _asked(question: Question) -> tuple[str, str]:
    return text_key(question.id), text_key(question.text)


def suggestions(index: OpenIndex, reached: Sequence[Reach], found: Audit, k: int, depth: int) -> list[str]:
    """Changes that would raise the ceiling, each measured on these questions."""
    said = []
    for deeper in (k for k in _DEEPER if k <= depth):
        share = sum(each.within(deeper) for each in reached) / len(reached)
        if deeper > k and share - found.ceiling >= _GAIN:
            said.append(
                f"more passages: the ceiling is {percent(share)} with {deeper} a search (-o rollout.top_k={deeper})"
            )
            break
    stemmed = _stemmed(index, reached, k)
    if stemmed is not None and stemmed - found.ceiling >= _STEMMED_GAIN:
        said.append(f"word stems: the ceiling is {percent(stemmed)} with dgpo index CORPUS -o stemmer=english")
    return said


def _stemmed(index: OpenIndex, reached: Sequence[Reach], k: int) -> float | None:
    """The ceiling with a stemmer; None where it is not a matter of seconds, or the index has one."""
    manifest = index.manifest
    small = manifest is not None and manifest.retriever == "bm25" and manifest.passages <= _SMALL
    if not small or manifest is None or manifest.settings.get("stemmer") != "none" or find_spec("Stemmer") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder) / "corpus.jsonl", Path(folder) / "stemmed"
        write_jsonl_atomic(corpus, ({"id": p.id, "contents": p.contents} for p in index.passages or ()))
        build_index(corpus, out, settings=dict(manifest.settings) | {"stemmer": "english"})
        again = search(open_index(out).retriever, [each.question for each in reached], k)
    return sum(each.within(k) for each in again) / len(again)
