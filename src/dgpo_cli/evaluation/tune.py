"""Settings of BM25 chosen by questions: what is best on one half of them, and what that gains on the other half.

BM25 as it comes is seldom the best that it can be (arXiv 2605.10848: 18 points on BrowseComp-Plus by tuning). First
the words (stemmer and stop words), then k1 and b with the best words. Passage length is not tried: cutting again would
change what the gold passages are.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import Question, SearchCall
from dgpo_cli.errors import ConfigError
from dgpo_cli.evaluation.outcome import evidence_recall, holds_answer
from dgpo_cli.evaluation.stats import PairedDifference, paired_difference
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.retrieval.base import Retriever, search_many
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import OpenIndex, open_index

WORDS = tuple(product(("none", "english"), ("english", "none")))  # stemmer, stop words
K1 = (0.6, 0.9, 1.2, 1.5, 2.0)
B = (0.3, 0.5, 0.75, 0.9)
_SETTINGS = ("variant", "k1", "b", "stopwords", "stemmer", "tokenizer")


@dataclass(frozen=True, slots=True)
class Tuned:
    """Shares from 0 to 1. `tried` are the settings in the order of their score on the choosing half."""

    settings: dict[str, Any]  # those that differ from the index's own
    measure: str  # "recall", or "answer in passages" where questions name no gold passages
    chosen_on: int  # questions
    tested_on: int
    before: float  # of the index as it is, on the testing half
    after: float
    gain: PairedDifference
    tried: list[tuple[dict[str, Any], float]]


def tune(index: OpenIndex, questions: Sequence[Question], k: int, *, seed: int, progress: Progress | None) -> Tuned:
    """Build the index again for every setting, in a temporary folder that is deleted.

    Raises ConfigError for an index that is not `bm25`, and where a half of the questions is empty.
    """
    manifest = index.manifest
    if manifest is None or index.passages is None or manifest.retriever != "bm25":
        kind = "a server" if manifest is None else f"a {manifest.retriever} index"
        raise ConfigError(f"{index.location} is {kind}; bm25 is tuned", hint="build one with `dgpo index CORPUS`")
    askable = [question for question in questions if not is_unanswerable(question)]
    gold = any(question.gold_keys for question in askable)
    usable = [question for question in askable if (question.gold_keys if gold else question.answers)]
    choosing = [question for question in usable if _half(question, seed)]
    testing = [question for question in usable if not _half(question, seed)]
    if not choosing or not testing:
        raise ConfigError(f"{len(usable)} questions cannot be halved", hint="give more questions")
    own = {name: manifest.settings[name] for name in _SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        tries = _Tries(Path(folder), index, gold, k, choosing, progress)
        tries.score(own)
        for stemmer, stopwords in WORDS:
            tries.score(own | {"stemmer": stemmer, "stopwords": stopwords})
        words = tries.best()
        for k1, b in product(K1, B):
            tries.score(words | {"k1": k1, "b": b})
        best = tries.best()
        before = _values(index.retriever, testing, k, gold)
        after = _values(tries.retriever(best), testing, k, gold)
    return Tuned(
        settings={name: value for name, value in best.items() if value != own[name]},
        measure="recall" if gold else "answer in passages",
        chosen_on=len(choosing),
        tested_on=len(testing),
        before=sum(before.values()) / len(before),
        after=sum(after.values()) / len(after),
        gain=paired_difference(before, after, seed=seed),
        tried=sorted(tries.scores, key=lambda each: -each[1]),
    )


class _Tries:
    """Indexes of one corpus under other settings, one at a time."""

    def __init__(
        self,
        folder: Path,
        index: OpenIndex,
        gold: bool,
        k: int,
        questions: Sequence[Question],
        progress: Progress | None,
    ) -> None:
        self._folder, self._gold, self._k, self._questions, self._progress = folder, gold, k, questions, progress
        self._corpus = folder / "corpus.jsonl"
        assert index.passages is not None, "tune refuses a server"
        write_jsonl_atomic(self._corpus, ({"id": p.id, "contents": p.contents} for p in index.passages))
        self.scores: list[tuple[dict[str, Any], float]] = []

    def score(self, settings: dict[str, Any]) -> None:
        if any(settings == tried for tried, _ in self.scores):
            return
        if self._progress is not None:
            self._progress(len(self.scores), len(WORDS) + len(K1) * len(B))
        values = _values(self.retriever(settings), self._questions, self._k, self._gold)
        self.scores.append((settings, sum(values.values()) / len(values)))

    def best(self) -> dict[str, Any]:
        """The first of the best: the index's own settings stay where nothing is better."""
        return max(self.scores, key=lambda each: each[1])[0]

    def retriever(self, settings: Mapping[str, Any]) -> Retriever:
        out = self._folder / "index"
        build_index(self._corpus, out, settings=settings, overwrite=True)
        return open_index(out).retriever


def _half(question: Question, seed: int) -> bool:
    """The same for a question whatever else is in its file."""
    return hashlib.sha256(f"{seed}/{question.key}".encode()).digest()[0] % 2 == 0


def _values(retriever: Retriever, questions: Sequence[Question], k: int, gold: bool) -> dict[str, float]:
    values = {}
    for question, hits in zip(questions, search_many(retriever, [q.text for q in questions], k), strict=True):
        searched = (SearchCall(question.text, tuple(hits)),)
        recall = evidence_recall(question, searched) if gold else None
        values[question.key] = float(holds_answer(searched, question.answers)) if recall is None else recall
    return values
