"""The word tokenizer behind every lexical retriever: lower case, words of two characters or more, no stop words.

This is what bm25s does by default (its pattern, its English list, no stemmer), so figures made with it carry over.
Stemming is Snowball's, after the stop words are gone, as there. Text is brought to NFC first. Of Chinese, Thai or Hindi
that pattern makes no words (scripts.py), so a corpus that needs it gets words of any script instead; English is cut
alike by both. A query of an index by words is looked for without vowel signs and in plain forms too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from dgpo_cli.core.text import composed
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.lexical import scripts

Language = Literal[
    "none", "english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish",
    "norwegian", "danish", "turkish",
]  # fmt: skip
# "unicode" cuts words of any script, "words" as bm25s does; "auto" is decided when an index is built.
Tokenizer = Literal["auto", "words", "unicode"]
AUTO_SHARE = 0.01  # of all characters; English Wikipedia has up to 0.0008 that bm25s's pattern cannot cut
_LOST = 0.5  # share of a passage's characters from which on it is hardly found
_WORD = re.compile(r"(?u)\b\w\w+\b")


def stop_words(language: Language) -> frozenset[str]:
    if language == "none":
        return frozenset()
    from bm25s import stopwords as lists

    return frozenset(vars(lists)[f"STOPWORDS_{'EN' if language == 'english' else language.upper()}"])


class WordConfig(Protocol):
    """The settings of a lexical retriever that decide its words."""

    @property
    def stopwords(self) -> Language: ...
    @property
    def stemmer(self) -> Language: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


class WordTokenizer:
    """Counts what it sees. Not for several threads at once: a stemmer keeps a cache.

    `cut` "plain" is bm25s's without NFC, of indexes that do not say how they were made; `folds` as in `scripts.cut`.
    """

    def __init__(
        self,
        stopwords: Language = "english",
        stemmer: Language = "none",
        cut: Literal["plain", "words", "unicode"] = "plain",
        *,
        folds: bool = True,
    ) -> None:
        self._skip = stop_words(stopwords)
        self._stem: Callable[[list[str]], list[str]] | None = None
        if stemmer != "none":
            import Stemmer

            self._stem = Stemmer.Stemmer(stemmer).stemWords
        self.cut, self._folds = cut, folds
        self.characters = self.uncut = self.lost = 0  # see `state`

    def words(self, text: str) -> list[str]:
        self.characters += len(text)
        found = _WORD.findall(text.lower()) if text.isascii() or self.cut == "plain" else self._beyond_ascii(text)
        return self._kept(found)

    def query(self, text: str) -> list[str]:
        """Words of a query."""
        if text.isascii() or self.cut != "words":
            return self.words(text)
        lower = composed(text).lower()
        found, folded = _WORD.findall(lower), scripts.folded(lower)
        known = set(found)
        return self._kept([*found, *(word for word in _WORD.findall(folded) if word not in known)])

    def _kept(self, words: list[str]) -> list[str]:
        kept = [word for word in words if word not in self._skip]
        return kept if self._stem is None else self._stem(kept)

    def _beyond_ascii(self, text: str) -> list[str]:
        text = scripts.undotted(composed(text).lower()) if self._folds else composed(text).lower()
        uncut = scripts.uncut(text)
        self.uncut += uncut
        self.lost += uncut > _LOST * len(text)
        return scripts.cut(text, folds=self._folds) if self.cut == "unicode" else _WORD.findall(text)

    @property
    def share(self) -> float:
        """Of all characters so far, those that bm25s's pattern cannot cut into words."""
        return self.uncut / max(1, self.characters)

    @property
    def state(self) -> dict[str, Any]:
        """The record for an index: its name, the share, the passages that are mostly of such characters, and whether it
        folds, which decides nothing in an index by words."""
        told = {"tokenizer": self.cut, "uncut_share": round(self.share, 6), "uncut_passages": self.lost}
        return told | ({"folds": True} if self.cut == "unicode" else {})


Made = TypeVar("Made")


def require_words(found: bool) -> None:
    """Raises InputError where no passage holds a word."""
    if not found:
        raise InputError(
            "no passage holds a word of two letters that is not a stop word",
            hint="give -o stopwords=none, or a corpus with text in it",
        )


def with_words(config: WordConfig, make: Callable[[WordTokenizer], Made]) -> tuple[Made, dict[str, Any]]:
    """The result of `make` with the tokenizer that the passages need, and the tokenizer's record for the index.

    `make` is called again if the corpus turns out to need words of any script.
    """
    first: Literal["words", "unicode"] = "words" if config.tokenizer == "auto" else config.tokenizer
    words = WordTokenizer(config.stopwords, config.stemmer, first)
    made = make(words)
    if config.tokenizer == "auto" and words.share >= AUTO_SHARE:
        words = WordTokenizer(config.stopwords, config.stemmer, "unicode")
        made = make(words)
    return made, words.state


def words_of(config: WordConfig, state: Mapping[str, Any]) -> WordTokenizer:
    """The tokenizer with which an index was built."""
    cut = state.get("tokenizer", "plain")
    return WordTokenizer(config.stopwords, config.stemmer, cut, folds=cut != "unicode" or bool(state.get("folds")))
