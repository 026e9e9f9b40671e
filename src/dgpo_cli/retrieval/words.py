"""The word tokenizer behind every lexical retriever: lower case, words of two characters or more, no stop words.

This is what bm25s does by default (its pattern, its English list, no stemmer), so figures made with it carry over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Stopwords = Literal["english", "none"]
_WORD = re.compile(r"(?u)\b\w\w+\b")


class WordTokenizer:
    def __init__(self, stopwords: Stopwords = "english") -> None:
        self._skip: frozenset[str] = frozenset()
        if stopwords == "english":
            from bm25s.stopwords import STOPWORDS_EN

            self._skip = frozenset(STOPWORDS_EN)

    def words(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text.lower()) if word not in self._skip]

    def ids(self, texts: Iterable[str]) -> tuple[list[list[int]], dict[str, int]]:
        """Word ids of every text and the vocabulary in order of first appearance."""
        vocabulary: dict[str, int] = {}
        rows = [[vocabulary.setdefault(word, len(vocabulary)) for word in self.words(text)] for text in texts]
        return rows, vocabulary
