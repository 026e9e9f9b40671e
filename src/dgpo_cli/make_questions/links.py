"""Passages of other documents that have a name in common with a passage, found by searching for the name."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_cli.core.text import holds_phrase, normalize_answer
from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.make_questions.candidate import NameLink, same_document, topics
from dgpo_cli.make_questions.draw import DocumentSplit, Drawn, document_of
from dgpo_cli.make_questions.names import Span, find, is_prose, names
from dgpo_cli.retrieval.base import Retriever, search_many
from dgpo_cli.retrieval.corpus.split import sentences

_MOST_NAMES = 12  # ours, of a passage, that are searched for
_FOUND = 5  # ours, passages of each that are looked at


def links(drawn: Sequence[Drawn], split: DocumentSplit, retriever: Retriever) -> list[NameLink | None]:
    """For each passage another of the same side: the first one that a name in it is the title of, else the first one
    that holds a name of several words, or of code, too.
    """
    named = [_names(each.passage) for each in drawn]
    queries = [name.text for found in named for name in found]
    results = iter(search_many(retriever, queries, _FOUND))
    return [
        _link(each, [(name, next(results)) for name in found], split) for each, found in zip(drawn, named, strict=True)
    ]


def _names(passage: Passage) -> list[Span]:
    """Names in a passage, each once, without those that say what it is about itself."""
    own = [normalize_answer(topic) for topic in topics(passage)]
    found: dict[str, Span] = {}
    for sentence in filter(is_prose, sentences(passage.text)):
        for span in names(sentence):
            plain = normalize_answer(span.text)
            if plain and not any(plain in topic or topic in plain for topic in own):
                found.setdefault(plain, span)
    return list(found.values())[:_MOST_NAMES]


def _link(drawn: Drawn, found: Sequence[tuple[Span, Sequence[Hit]]], split: DocumentSplit) -> NameLink | None:
    shared: NameLink | None = None
    for name, hits in found:
        for passage in (hit.passage for hit in hits):
            if same_document(passage, drawn.passage) or split.side(document_of(passage)) != drawn.side:
                continue
            if normalize_answer(name.text) in map(normalize_answer, topics(passage)):
                return NameLink(name.text, passage, is_title=True, is_code=name.is_code)
            if shared is None and _holds(passage, name):
                shared = NameLink(name.text, passage, is_title=False, is_code=name.is_code)
    return shared


def _holds(passage: Passage, name: Span) -> bool:
    """Whether a passage has a name that is more than a word which many things have in common."""
    if name.is_code:
        prose = filter(is_prose, sentences(passage.text))
        return any(find(sentence, name.text, is_code=True) is not None for sentence in prose)
    return " " in name.text and holds_phrase(passage.text, name.text)
