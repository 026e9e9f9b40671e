"""Invented names: one word of two pieces, no word twice, so that every split has names of its own.

A start is 1 of 100 and an ending 1 of 225, each a token of the world's tokenizer. Fewer pieces would make an ending
hard to find again in a passage that holds a dozen names; more would make each too rare to learn within minutes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_VOWELS = "aeiou"
_ONSETS = (*"BDFGKLMNPRSTVZ", "Br", "Dr", "Kl", "Pl", "St", "Tr")
_CONSONANTS = "bdfgklmnprstvwz"

STARTS = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
ENDINGS = tuple(consonant + vowel + coda for consonant in _CONSONANTS for vowel in _VOWELS for coda in ("", "n", "x"))


def names(rng: random.Random) -> Iterator[str]:
    """Every combination of a start and an ending once, in an order drawn from `rng`."""
    combinations = [start + ending for start in STARTS for ending in ENDINGS]
    rng.shuffle(combinations)
    yield from combinations


def merges() -> list[tuple[str, str]]:
    """The merges of a byte-level BPE that gives exactly two tokens for every name, start and ending."""
    chains: dict[tuple[str, str], None] = {}  # in order and without repeats
    for piece in (*STARTS, *ENDINGS):
        for length in range(1, len(piece)):
            chains[piece[:length], piece[length]] = None
    return list(chains)
