"""Invented names: one word of two syllables each, no word twice, so that every split has names of its own.

There are 225 syllables: with few of them, the second syllable of a name would be hard to find again in a passage that
holds a dozen names, and a tiny model would need long to learn to copy.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

CONSONANTS = "bdfghklmnprstvz"
VOWELS = "aeiou"
ENDINGS = ("", "n", "s")
SYLLABLES = tuple(c + v + e for c in CONSONANTS for v in VOWELS for e in ENDINGS)


def words(rng: random.Random) -> Iterator[str]:
    """Capitalized words without end; a word that was given once is not given again."""
    seen: set[str] = set()
    while True:
        word = (rng.choice(SYLLABLES) + rng.choice(SYLLABLES)).capitalize()
        if word not in seen:
            seen.add(word)
            yield word
