"""Small corpora that the retrieval tests share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dgpo_cli.core.types import Passage
from dgpo_cli.retrieval.index.store import PassageStore, StoreWriter

TOWNS = (
    Passage("a", '"Vesapo"\nVesapo is a town on the river Lun. The mayor of Vesapo is Mira Holt.'),
    Passage("b", '"Lun"\nThe Lun is a river in the north. It passes Vesapo and Tarn.'),
    Passage("c", '"Mira Holt"\nMira Holt wrote the novel Grey Harbour before she was mayor.'),
    Passage("d", '"Grey Harbour"\nGrey Harbour is a novel about a harbour town, by Mira Holt.'),
    Passage("e", '"Tarn"\nTarn is a town of weavers.'),
)


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_corpus(path: Path, passages: Iterable[Passage] = TOWNS) -> Path:
    return write_lines(path, ({"id": p.id, "contents": p.contents} for p in passages))


def stored(directory: Path, passages: Sequence[Passage]) -> PassageStore:
    directory.mkdir(parents=True, exist_ok=True)
    with StoreWriter(directory) as writer:
        for passage in passages:
            writer.add(passage)
    return PassageStore(directory)
