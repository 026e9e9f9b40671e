"""Is an index whole, and how good is it? Integrity, finding a passage by its own words, recall and answer-hit at k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.text import composed, contains_answer
from dgpo_cli.core.types import Passage, Question
from dgpo_cli.errors import RetrievalError
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.retrieval.base import search_many
from dgpo_cli.retrieval.index.manifest import check_hashes
from dgpo_cli.retrieval.lexical import scripts
from dgpo_cli.retrieval.open import OpenIndex
from dgpo_cli.retrieval.remote.milvus.retriever import MilvusRetriever

_REPORT_EVERY = 2_000  # passages
_SAMPLE = 200  # passages searched for by their own words
_OLD_SAMPLE = 2_000  # passages
_QUERY_WORDS = 12
_QUERY_CHARACTERS = 40  # of a script without spaces
_SHORT_RUN = 4  # characters


@dataclass(frozen=True, slots=True)
class RetrievalQuality:
    """Shares from 0 to 1 by k. `recall` is empty where no question names its gold passages."""

    questions: int
    with_gold: int
    recall: dict[int, float]  # mean over questions with gold passages of the share of those found in the top k
    answer_hit: dict[int, float]  # share of questions with an accepted answer in the top k; empty without answers


def check_integrity(index: OpenIndex, progress: Progress | None = None) -> int:
    """Compare every file with its hash and read every passage, and every row in Milvus; returns how many there are.

    Raises RetrievalError at the first fault, and for a server, whose files are elsewhere.
    """
    if index.passages is None or index.manifest is None:
        raise RetrievalError(
            f"{index.location} is a server; only an index folder can be checked", hint="give --index DIR"
        )
    check_hashes(Path(index.location), index.manifest, whole=True)
    total = len(index.passages)
    for row in range(total):
        _ = index.passages[row]
        if progress is not None and row % _REPORT_EVERY == 0:
            progress(row, total)
    if isinstance(index.retriever, MilvusRetriever):
        index.retriever.verify(progress)
    return total


def uncut_share(index: OpenIndex) -> float:
    """The share of the corpus's characters that the index's tokenizer cannot cut into words.

    0 where it cuts any script, and where nothing is searched by words. An index that does not record it is old: there
    it is measured on a sample.
    """
    assert index.passages is not None and index.manifest is not None, f"{index.location} keeps its passages elsewhere"
    manifest = index.manifest
    words = manifest.state.get("bm25", manifest.state)
    by_words = manifest.settings.get("mode", manifest.retriever) in ("bm25", "rank-bm25", "hybrid")
    if not by_words or words.get("tokenizer") == "unicode" or manifest.settings.get("scoring") == "milvus":
        return 0.0
    if "uncut_share" in words:
        return float(words["uncut_share"])
    total = len(index.passages)
    rows = range(total) if total <= _OLD_SAMPLE else [total * n // _OLD_SAMPLE for n in range(_OLD_SAMPLE)]
    texts = [composed(index.passages[row].contents) for row in rows]
    return sum(map(scripts.uncut, texts)) / max(1, sum(map(len, texts)))


def self_recall(index: OpenIndex, ks: Sequence[int], progress: Progress | None = None) -> tuple[int, dict[int, float]]:
    """How many passages were searched for by the first words of their text, and by k the share that came back.

    The sample is spread evenly over the index. A passage of the same contents counts as the one searched for.
    """
    assert index.passages is not None, f"{index.location} keeps its passages elsewhere"
    total = len(index.passages)
    sample = [index.passages[total * n // _SAMPLE] for n in range(_SAMPLE)] if total > _SAMPLE else list(index.passages)
    results = search_many(index.retriever, [_own_words(passage) for passage in sample], max(ks), progress)
    ranks = [
        next((hit.rank for hit in hits if hit.passage.contents == passage.contents), None)
        for passage, hits in zip(sample, results, strict=True)
    ]
    return len(sample), {k: sum(rank is not None and rank <= k for rank in ranks) / len(sample) for k in ks}


def _own_words(passage: Passage) -> str:
    """The first words of its text; of a script without spaces so many characters, cut inside a sentence at both ends.

    A whole sentence would be one word of the passage to a tokenizer that cuts at spaces only, and be found by it.
    """
    text = passage.text or passage.title
    run = scripts.spaceless_runs().search(text, 0, _QUERY_CHARACTERS)
    if run is None:
        return " ".join(text.split()[:_QUERY_WORDS])
    first, last = run.span()
    return text[first + 1 : last - 1] if last - first > _SHORT_RUN else run[0]


def measure(
    index: OpenIndex, questions: Sequence[Question], ks: Sequence[int], progress: Progress | None = None
) -> RetrievalQuality:
    """Search with every question as it stands. Gold passages match by id, or by title where only titles are known.

    An unanswerable question counts in neither figure: its answer stands in no passage.
    """
    recall, found = dict.fromkeys(ks, 0.0), dict.fromkeys(ks, 0)
    with_gold = with_answers = 0
    results = search_many(index.retriever, [question.text for question in questions], max(ks), progress)
    for question, hits in zip(questions, results, strict=True):
        if is_unanswerable(question):
            continue
        gold = question.gold_keys
        with_gold += bool(gold)
        with_answers += bool(question.answers)
        for k in ks:
            top = hits[:k]
            if gold:
                recall[k] += len(gold & {question.key_of(hit.passage) for hit in top}) / len(gold)
            found[k] += any(contains_answer(hit.passage.contents, question.answers) for hit in top)
    return RetrievalQuality(
        questions=len(questions),
        with_gold=with_gold,
        recall={k: value / with_gold for k, value in recall.items()} if with_gold else {},
        answer_hit={k: value / with_answers for k, value in found.items()} if with_answers else {},
    )
