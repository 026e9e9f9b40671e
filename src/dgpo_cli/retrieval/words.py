"""The word tokenizer behind every lexical retriever: lower case, words of two characters or more, no stop words.

This is what bm25s does by default (its pattern, its English list, no stemmer), so figures made with it carry over.
Stemming is Snowball's, after the stop words are gone, as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Language = Literal[
    "none", "english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish",
    "norwegian", "danish", "turkish",
]  # fmt: skip
_WORD = re.compile(r"(?u)\b\w\w+\b")


def stop_words(language: Language) -> frozenset[str]:
    if language == "none":
        return frozenset()
    from bm25s import stopwords as lists

    return frozenset(vars(lists)[f"STOPWORDS_{'EN' if language == 'english' else language.upper()}"])


class WordTokenizer:
    """Not for several threads at once: a stemmer keeps a cache."""

    def __init__(self, stopwords: Language = "english", stemmer: Language = "none") -> None:
        self._skip = stop_words(stopwords)
        self._stem: Callable[[list[str]], list[str]] | None = None
        if stemmer != "none":
            import Stemmer

            self._stem = Stemmer.Stemmer(stemmer).stemWords

    def words(self, text: str) -> list[str]:
        kept = [word for word in _WORD.findall(text.lower()) if word not in self._skip]
        return kept if self._stem is None else self._stem(kept)
