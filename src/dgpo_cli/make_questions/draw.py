"""The choice of passages to make questions from, and of the side of the split for each document.

Every document gives one passage before any gives a second one, so that none dominates. A document is on one side as a
whole: test questions are about documents that no training question is about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.text import text_key
from dgpo_cli.core.types import Passage
from dgpo_cli.retrieval.index.store import PassageStore

QuestionSide = Literal["train", "validation", "test"]
SIDES: tuple[QuestionSide, ...] = ("train", "validation", "test")
_PIECE = re.compile(r"#\d+$")  # of an id that a folder's passages have
_SECTION = " - "  # between the title of a page and a section of it, as in Wikipedia dumps
_TELL_EVERY = 20_000  # passages


@dataclass(frozen=True, slots=True)
class Drawn:
    """A passage that questions are made about."""

    row: int  # in the index
    passage: Passage
    side: QuestionSide


def is_of_folder(passage: Passage) -> bool:
    return _PIECE.search(passage.id) is not None


def document_of(passage: Passage) -> str:
    """The file that a folder's passage is from, else its title up to the name of a section."""
    if is_of_folder(passage):
        return _PIECE.sub("", passage.id)
    return f"{text_key(passage.title)} ".partition(_SECTION)[0].strip()


@dataclass(frozen=True, slots=True)
class DocumentSplit:
    """Sides of documents by their hash: below one bound it is a test document, below the next one of validation."""

    seed: int
    bounds: Mapping[QuestionSide, int]  # of test and validation, exclusive

    def side(self, document: str) -> QuestionSide:
        place = _hashes(document, self.seed)[1]
        return next((side for side, bound in self.bounds.items() if place < bound), "train")


def draw(
    passages: PassageStore,
    count: int,
    *,
    validation: float,
    test: float,
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[Drawn], DocumentSplit]:
    """`count` passages in the order of the draw, fewer where there are fewer, and the split of all documents.

    Reads the corpus once and keeps 24 bytes of every passage. A side that gets a share above 0 gets a document at
    least, where there are three.
    """
    orders, places, rows = (np.empty(len(passages), dtype=np.uint64) for _ in range(3))
    for row, passage in enumerate(passages):
        orders[row], places[row] = _hashes(document_of(passage), seed)
        rows[row] = _hashes(f"row {row}", seed)[0]
        if progress is not None and row % _TELL_EVERY == 0:
            progress(row, len(passages))
    split = DocumentSplit(seed, _bounds(np.unique(places), validation, test))
    by_document = np.lexsort((rows, orders))
    sorted_orders = orders[by_document]
    starts = np.flatnonzero(np.r_[True, sorted_orders[1:] != sorted_orders[:-1]])
    turns = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    chosen = by_document[np.lexsort((sorted_orders, turns))[:count]]
    found = [(int(row), passages[int(row)]) for row in chosen]
    return [Drawn(row, passage, split.side(document_of(passage))) for row, passage in found], split


def _bounds(places: np.ndarray, validation: float, test: float) -> dict[QuestionSide, int]:
    """`places` are the sorted hashes of the documents."""
    few = len(places) < len(SIDES)
    counts = [0 if few or not share else max(1, round(share * len(places))) for share in (test, validation)]
    ends = np.cumsum(counts)
    bounds = [0 if not end else int(places[min(end, len(places) - 1)]) for end in map(int, ends)]
    return {"test": bounds[0], "validation": bounds[1]}


def _hashes(text: str, seed: int) -> tuple[int, int]:
    """Two numbers of 64 bits that have nothing to do with each other."""
    digest = hashlib.blake2b(f"{seed}\x1f{text}".encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
