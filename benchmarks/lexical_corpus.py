"""The generated corpus of lexical.py and the queries to it.

A passage has 100 words on average: a third are stop words, the rest are drawn from 3 million made-up words by
Zipf-Mandelbrot's law, with constants near those of Wikipedia's passages (the most frequent word is 0.5 % of the words
that are no stop words, the hundredth 0.08 %). Words are drawn independently, so a passage repeats fewer of them than
real text does (67 different ones where Wikipedia's have about 55) and postings are longer. The corpus of a size is the
beginning of a larger one.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

QUERY_WORDS = 8
VOCABULARY, SHIFT, EXPONENT, STOP_SHARE = 3_000_000, 20.0, 1.05, 0.32
CHUNK = 10_000  # passages generated at once
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
STOP_WORDS = "a and are as at be by for in into is it not of on that the their they this to was will with".split()  # noqa: SIM905


def spelled(rank: int) -> str:
    """A word per rank: two syllables for the 10,000 most frequent, three for a million, then four."""
    length = 2 if rank < 10**4 else 3 if rank < 10**4 + 10**6 else 4
    rank -= {2: 0, 3: 10**4, 4: 10**4 + 10**6}[length]
    return "".join(SYLLABLES[rank // 100**place % 100] for place in range(length))


def generated(passages: int) -> Iterator[str]:
    """Lines of a corpus."""
    import numpy as np

    words = [*map(spelled, range(VOCABULARY)), *STOP_WORDS]
    most, least = (1 + SHIFT) ** (1 - EXPONENT), (VOCABULARY + 1 + SHIFT) ** (1 - EXPONENT)
    for start in range(0, passages, CHUNK):
        draw = np.random.default_rng([0, start])
        lengths = draw.integers(60, 141, CHUNK)
        ends = np.cumsum(lengths)
        # The inverse of the integral of (rank + SHIFT) ** -EXPONENT, from rank 1 on.
        share = draw.random(int(ends[-1]))
        ranks = ((most - share * (most - least)) ** (1 / (1 - EXPONENT)) - SHIFT).astype(np.int64) - 1
        stop = draw.random(len(ranks)) < STOP_SHARE
        ranks[stop] = VOCABULARY + draw.integers(0, len(STOP_WORDS), int(stop.sum()))
        text = [words[rank] for rank in ranks.tolist()]
        for row in range(start, min(start + CHUNK, passages)):
            body = text[ends[row - start] - lengths[row - start] : ends[row - start]]
            title = f"{body[0]} {body[1]}".title()
            yield json.dumps({"id": str(row), "contents": f'"{title}"\n{" ".join(body)}.'}) + "\n"


def corpora(folder: Path, sizes: list[int]) -> None:
    """Write the largest corpus and the beginnings of it that are missing."""
    missing = [size for size in sizes if not corpus_file(folder, size).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        streams = {
            size: files.enter_context(open(corpus_file(folder, size).with_suffix(".tmp"), "w")) for size in missing
        }
        for row, line in enumerate(generated(max(missing))):
            for size, stream in streams.items():
                if row < size:
                    stream.write(line)
            if row % 100_000 == 0:
                print(f"generated {row:,} passages", file=sys.stderr)
    for size in missing:
        corpus_file(folder, size).with_suffix(".tmp").rename(corpus_file(folder, size))


def corpus_file(folder: Path, size: int) -> Path:
    return folder / f"corpus-{size}.jsonl"


def queries(corpus: Path, number: int) -> list[str]:
    """Eight words in a row of the text of passages drawn from the first 10,000 lines, the same for every system."""
    draw = random.Random(0)
    with open(corpus) as stream:
        texts = [json.loads(line)["contents"].partition("\n")[2].split() for line in islice(stream, 10_000)]
    found: list[str] = []
    while len(found) < number:
        words = draw.choice(texts)
        start = draw.randrange(len(words) - QUERY_WORDS)
        query = words[start : start + QUERY_WORDS]
        if not set(query) <= set(STOP_WORDS):  # which bm25s with numba refuses where it comes alone
            found.append(" ".join(query))
    return found
