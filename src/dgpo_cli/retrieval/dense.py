"""Dense retrieval: passages encoded by E5's conventions (retrieval/encoder.py), exact inner-product search by faiss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.encoder import Encoder, EncoderConfig
from dgpo_cli.retrieval.ranking import hits
from dgpo_cli.retrieval.store import PassageStore

FILE = "faiss.index"
_SORTED_TOGETHER = 16  # batches whose passages are sorted by length together


class DenseRetriever:
    Config = EncoderConfig
    LIBRARIES = ("faiss-cpu", "torch", "transformers", "numpy")

    @staticmethod
    def build(
        directory: Path, store: PassageStore, config: EncoderConfig, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Encode all passages and write a flat inner-product index."""
        import faiss

        encoder = Encoder(config)
        index: Any = None
        step = config.batch_size * _SORTED_TOGETHER
        for start in range(0, len(store), step):
            texts = [store[row].contents for row in range(start, min(start + step, len(store)))]
            vectors = encoder.encode(texts, config.passage_prefix)
            if index is None:
                index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            if progress is not None:
                progress(start + len(texts), len(store))
        faiss.write_index(index, str(directory / FILE))
        return {"encoder_digest": encoder.digest(), "truncated_passages": encoder.truncated}

    def __init__(self, directory: Path, store: PassageStore, config: EncoderConfig, state: Mapping[str, Any]) -> None:
        import faiss

        self._store, self._config = store, config
        again = "build the index again with --overwrite"
        self._encoder = Encoder(config)
        digest = self._encoder.digest()
        if digest != state["encoder_digest"]:
            raise RetrievalError(
                f"{directory} was built with other {config.encoder} weights: {state['encoder_digest']}, now {digest}",
                hint=f"put the encoder back, or {again}",
            )
        try:
            self._index = faiss.read_index(str(directory / FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise RetrievalError(f"{directory / FILE} is damaged: {error}", hint=again) from error
        if self._index.ntotal != len(store):
            raise RetrievalError(
                f"{directory / FILE}: {self._index.ntotal} vectors for {len(store)} passages", hint=again
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        asked = [place for place, query in enumerate(queries) if query.strip()]
        results: list[list[Hit]] = [[] for _ in queries]
        if not asked:
            return results
        vectors = self._encoder.encode([queries[place] for place in asked], self._config.query_prefix)
        scores, rows = self._index.search(vectors, min(k, len(self._store)))  # [n, k] each
        for place, row_scores, row_ids in zip(asked, scores, rows, strict=True):
            order = np.lexsort((row_ids, -row_scores))  # faiss leaves the order of equal scores open
            results[place] = hits(self._store, row_ids[order], row_scores[order])
        return results
