"""Passages on disk, and the memory of ids."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.retrieval_corpora import TOWNS, stored

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.corpus import seen_ids
from dgpo_cli.retrieval.corpus.seen_ids import SeenIds
from dgpo_cli.retrieval.index import store
from dgpo_cli.retrieval.index.store import OFFSETS, PASSAGES, PassageStore, StoreWriter

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20))
def test_any_text_comes_back_as_it_was(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    passages = [Passage(*row) for row in rows]
    opened = stored(tmp_path_factory.mktemp("store"), passages)
    assert len(opened) == len(passages)
    assert list(opened) == passages
    assert [opened[row] for row in reversed(range(len(passages)))] == passages[::-1]


def test_rows_outside_the_store_are_refused(tmp_path: Path) -> None:
    opened = stored(tmp_path, TOWNS)
    for row in (-1, len(TOWNS)):
        with pytest.raises(IndexError):
            opened[row]


def test_offsets_survive_the_writers_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUFFERED", 3)
    assert list(stored(tmp_path, TOWNS)) == list(TOWNS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [OFFSETS, PASSAGES]


def test_writing_takes_no_more_memory_for_a_corpus_ten_times_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_BUFFERED", 500)

    def peak(count: int) -> int:
        directory = tmp_path / str(count)
        directory.mkdir()
        seen = SeenIds()
        tracemalloc.start()
        with StoreWriter(directory) as writer:
            for number in range(count):
                assert seen.add(str(number))
                writer.add(Passage(str(number), f"passage {number}"))
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(10)  # what the first use imports and caches does not count
    small, large = peak(2_000), peak(20_000)
    assert large < 1.2 * small


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "offsets of another kind", "offsets pickled"])
def test_files_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    stored(tmp_path, TOWNS)
    lines, offsets = tmp_path / PASSAGES, tmp_path / OFFSETS
    if damage == "truncated":
        lines.write_bytes(lines.read_bytes()[:-1])
    elif damage == "longer":
        lines.write_bytes(lines.read_bytes() + b"x")
    elif damage == "missing":
        lines.unlink()
    elif damage == "offsets of another kind":
        np.save(offsets, np.load(offsets).astype(np.float64))
    else:
        np.save(offsets, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RetrievalError, match=PASSAGES):
        PassageStore(tmp_path)


def test_a_damaged_row_is_an_error_that_names_it(tmp_path: Path) -> None:
    stored(tmp_path, TOWNS)
    blob = bytearray((tmp_path / PASSAGES).read_bytes())
    blob[0] = ord("x")
    (tmp_path / PASSAGES).write_bytes(blob)
    opened = PassageStore(tmp_path)
    with pytest.raises(RetrievalError, match="row 0"):
        opened[0]
    assert opened[1] == TOWNS[1]


@given(ids=st.lists(st.one_of(st.integers(0, 12).map(str), st.sampled_from(["00", "01", "٣", "a", "b", "", "-1"]))))
def test_seen_ids_agree_with_a_set(ids: list[str]) -> None:
    seen, reference = SeenIds(), set[str]()
    for identity in ids:
        assert seen.add(identity) == (identity not in reference)
        reference.add(identity)


def test_seen_ids_agree_with_a_set_when_hashes_are_sorted_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids, "_RECENT", 4)
    seen = SeenIds()
    ids = [f"p{number * 7919 % 100}" for number in range(100)]
    assert all(seen.add(identity) for identity in ids)
    assert not any(seen.add(identity) for identity in ids)
    assert seen.add("p100")
