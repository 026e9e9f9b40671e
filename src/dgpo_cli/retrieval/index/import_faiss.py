"""A faiss index that someone else built, as the vectors of an index here: `dgpo index CORPUS --from-faiss FILE`.

A faiss file does not record its encoder and its passages. So a sample of the passages is encoded
and compared with the vectors of their rows, and a file whose rows are others is refused. Of a flat index the vectors
are taken over in half precision, as if they had been encoded here; any other is used as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.retrieval.corpus.reader import CorpusReport
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.retrieval.dense.approximate import measure, nlist, set_probes
from dgpo_cli.retrieval.dense.encoder import Encoder, encoder_state
from dgpo_cli.retrieval.dense.probe import KEY, probe
from dgpo_cli.retrieval.dense.retriever import FILE, DenseConfig, index_vectors, sample_queries
from dgpo_cli.retrieval.index.mapped import new_array
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.bm25 import BM25Retriever

_SAMPLE = 200  # passages encoded for the comparison
_OWN = 0.95  # least share of them that must lie at their own row
_ALIKE = 0.99  # least median cosine, where the file keeps a byte a number or more
_AMONG = 10  # best rows of which the own one must be one, in a file that does not give its vectors back
_TIE = 1e-3  # of a cosine: passages that repeat each other have the same vector
_CHUNK = 1 << 16  # vectors converted at once


def adopt_faiss(
    directory: Path,
    store: PassageStore,
    retriever: str,
    config: Any,
    file: Path,
    report: CorpusReport,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the engine's files with the vectors of `file`; returns the `state` that opening checks.

    Raises InputError for a file that is no faiss index, or is not one of these passages by this encoder.
    """
    if retriever == "hybrid":
        dense = _adopt(directory, store, config.dense, file, report, progress)
        return {"bm25": BM25Retriever.build(directory, store, config.bm25, progress), "dense": dense}
    return _adopt(directory, store, config, file, report, progress)


def _adopt(
    directory: Path,
    store: PassageStore,
    config: DenseConfig,
    file: Path,
    report: CorpusReport,
    progress: Progress | None,
) -> dict[str, Any]:
    import faiss

    index = _read(file)
    places = _places(file, int(index.ntotal), report)
    encoder = Encoder(config)
    checked = _check(file, index, store, places, encoder)
    if isinstance(index, faiss.IndexFlat):
        _convert(index, directory, places, progress)
        return {"adopted": checked} | index_vectors(directory, store, encoder, config, progress)
    name = type(index).__name__
    if config.factory != "auto":
        raise ConfigError(
            f"{file} is an {name}, whose vectors are compressed, so {config.factory} cannot be made of them",
            hint="leave -o factory out to use it as it is, or give a flat index",
        )
    if report.skipped and len(store) != index.ntotal:
        raise InputError(
            f"{file}: {report.skipped:,} lines of the corpus are of no use, and no row can be taken out of an {name}",
            hint="repair the corpus, or give a flat index",
        )
    _link(file, directory / FILE)
    probing = _probing(index, sample_queries(store, encoder), config.nprobe)
    told = {"factory": name, "adopted": checked, "measured": probing, KEY: probe(encoder, store[0].contents)}
    return encoder_state(encoder) | told


def _read(file: Path) -> Any:
    """The index, memory-mapped where its kind can be. A faiss file is data: reading it runs nothing."""
    import faiss

    hint = "give a file that faiss.write_index wrote; parts of one are joined first: cat part_aa part_ab > e5.index"
    if not file.is_file():
        raise InputError(f"{file}: no such file", hint=hint)
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise InputError(f"{file} is no faiss index, or a part of one: {_reason(error)}", hint=hint) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(
            f"{file} does not compare by inner product (its metric is {index.metric_type})",
            hint="give an index with METRIC_INNER_PRODUCT, or let dgpo encode: leave --from-faiss out",
        )
    return index


def _places(file: Path, rows: int, report: CorpusReport) -> Sequence[int] | np.ndarray:
    """Row of the file by passage. Rows and passages differ where skipped lines of the corpus have a row in the file."""
    if rows == report.passages:
        return range(rows)
    if rows != report.passages + report.skipped:
        skipped = f" and {report.skipped:,} lines of no use" if report.skipped else ""
        raise InputError(
            f"{file} holds {rows:,} vectors, the corpus {report.passages:,} passages{skipped}",
            hint="give the corpus that the index was built over",
        )
    passages = np.arange(report.passages)
    return passages + np.searchsorted(np.asarray(report.gaps), passages, side="right")


def _check(
    file: Path, index: Any, store: PassageStore, places: Sequence[int] | np.ndarray, encoder: Encoder
) -> dict[str, Any]:
    """Compare a sample of passages with the rows of the file. Raises InputError where they do not agree."""
    rows = sorted({len(store) * n // _SAMPLE for n in range(_SAMPLE)})
    encoded = encoder.encode([store[row].contents for row in rows], encoder.conventions.passage_prefix)
    if encoded.shape[1] != index.d:
        raise InputError(
            f"{file} holds vectors of {index.d} numbers, the encoder gives {encoded.shape[1]}", hint=_OTHER_ENCODER
        )
    own = np.asarray([places[row] for row in rows], dtype=np.int64)
    kept = _reconstructed(index, own)
    if kept is None:
        found = index.search(encoded, min(_AMONG, int(index.ntotal)))[1]
        share, cosine = float((found == own[:, None]).any(axis=1).mean()), None
    else:
        length = np.linalg.norm(kept, axis=1, keepdims=True)
        alike = encoded @ (kept / np.maximum(length, 1e-12)).T
        share = float((alike.diagonal() >= alike.max(axis=1) - _TIE).mean())
        cosine = float(np.median(alike.diagonal()))
    checked = {"sample": len(rows), "own_row": round(share, 4), "cosine": None if cosine is None else round(cosine, 4)}
    if share < _OWN:
        raise InputError(
            f"{file} is not by this encoder over these passages: of {len(rows)} that were encoded again, "
            f"{share:.0%} lie at their own row (cosine {checked['cosine']})",
            hint=_OTHER_ENCODER,
        )
    if cosine is not None and _bytes_per_number(index) >= 1:
        if cosine < _ALIKE:
            raise InputError(
                f"{file} was encoded in another way: the median cosine with {len(rows)} passages encoded again is "
                f"{cosine:.3f}, below {_ALIKE}",
                hint=_OTHER_ENCODER,
            )
        if abs(float(np.median(length)) - 1) > 1 - _ALIKE:
            raise InputError(
                f"{file} holds vectors of length {float(np.median(length)):.3g}, and queries are of length 1",
                hint="normalize them (faiss.normalize_L2), or let dgpo encode: leave --from-faiss out",
            )
    return checked


_OTHER_ENCODER = (
    "name what it was built with: --encoder, -o passage_prefix=..., -o pooling=..., -o max_length=..., and its corpus"
)


def _reconstructed(index: Any, rows: np.ndarray) -> np.ndarray | None:
    """Vectors [n, H] of these rows as the file has them, None where its kind does not give them back."""
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    try:
        if inverted is not None:
            inverted.make_direct_map()
        found: np.ndarray = index.reconstruct_batch(rows)
    except RuntimeError:
        return None
    return found


def _bytes_per_number(index: Any) -> float:
    try:
        return float(index.sa_code_size() / index.d)
    except RuntimeError:  # a graph, say
        return 0.0


def _convert(index: Any, directory: Path, places: Sequence[int] | np.ndarray, progress: Progress | None) -> None:
    """The vectors of a flat index as this project keeps them: [N, H] in half precision."""
    total = len(places)
    kept = new_array(directory / vectors.FILE, np.float16, (total, index.d))
    for start in range(0, total, _CHUNK):
        rows = np.asarray(places[start : start + _CHUNK], dtype=np.int64)
        part = index.reconstruct_n(int(rows[0]), int(rows[-1] - rows[0]) + 1)[rows - rows[0]].astype(np.float16)
        if not np.isfinite(part).all():
            raise InputError(f"row {rows[0]} or one of the {len(rows)} from there on is not finite")
        kept[start : start + len(rows)] = part
        if progress is not None:
            progress(start + len(rows), total)


class _AllLists:
    """The results of an index that probes all of its lists."""

    def __init__(self, index: Any, lists: int) -> None:
        self._index, self._lists = index, lists

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        set_probes(self._index, self._lists)
        scores, rows = self._index.search(queries, k)
        return list(zip(rows, scores, strict=True))


def _probing(index: Any, queries: np.ndarray, nprobe: int | None) -> Mapping[str, Any]:
    """Number of lists that a query probes, and the share of the results of all lists that these hold."""
    lists = nlist(index)
    if lists is None:
        return {"nprobe": None}
    measured = measure(index, _AllLists(index, lists), queries, nprobe)
    return {"nprobe": measured.nprobe, "of_all_lists": measured.recall, "sample": measured.sample}


def _link(file: Path, place: Path) -> None:
    """Without a second copy where the file system can."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].rpartition("' failed: ")[2]
