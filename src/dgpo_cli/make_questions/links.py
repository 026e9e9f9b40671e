"""Passages of other documents that have a name in common with a passage, found by searching for the name."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_cli.core.text import holds_phrase, normalize_answer
from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.make_questions.candidate import NameLink, same_document, subject
from dgpo_cli.make_questions.draw import DocumentSplit, Drawn, document_of
from dgpo_cli.make_questions.names import names
from dgpo_cli.retrieval.base import Retriever, search_many
from dgpo_cli.retrieval.corpus.split import sentences

_MOST_NAMES = 12  # ours, of a passage, that are searched for
_FOUND = 5  # ours, passages of each that are looked at


def links(drawn: Sequence[Drawn], split: DocumentSplit, retriever: Retriever) -> list[NameLink | None]:
    """For each passage another of the same side: the first one that a name in it is the title of, else the first one
    that holds a name of several words, too.
    """
    named = [_names(each.passage) for each in drawn]
    queries = [name for found in named for name in found]
    results = iter(search_many(retriever, queries, _FOUND))
    return [
        _link(each, [(name, next(results)) for name in found], split) for each, found in zip(drawn, named, strict=True)
    ]


def _names(passage: Passage) -> list[str]:
    """Names in a passage, each once, without those that say what it is about itself."""
    own = normalize_answer(subject(passage))
    found: dict[str, str] = {}
    for sentence in sentences(passage.text):
        for span in names(sentence):
            plain = normalize_answer(span.text)
            if plain and plain not in own and own not in plain:
                found.setdefault(plain, span.text)
    return list(found.values())[:_MOST_NAMES]


def _link(drawn: Drawn, found: Sequence[tuple[str, Sequence[Hit]]], split: DocumentSplit) -> NameLink | None:
    shared: NameLink | None = None
    for name, hits in found:
        for passage in (hit.passage for hit in hits):
            if same_document(passage, drawn.passage) or split.side(document_of(passage)) != drawn.side:
                continue
            if normalize_answer(subject(passage)) == normalize_answer(name):
                return NameLink(name, passage, is_title=True)
            if shared is None and " " in name and holds_phrase(passage.text, name):
                shared = NameLink(name, passage, is_title=False)
    return shared
