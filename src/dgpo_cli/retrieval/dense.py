"""Dense retrieval with any transformers encoder, by E5's conventions (Wang et al. 2022), exact search by faiss.

"query: " and "passage: " prefixes, mean pooling over the attention mask, L2 normalization, inner product in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.ranking import hits
from dgpo_cli.retrieval.store import PassageStore

FILE = "faiss.index"
DEFAULTS: dict[str, Any] = {
    "encoder": "intfloat/e5-base-v2",
    "query_prefix": "query: ",
    "passage_prefix": "passage: ",
    "max_length": 256,
    "batch_size": 128,
}


class Encoder:
    """Texts to unit vectors [n, dim] float32."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        name = settings["encoder"]
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._model = AutoModel.from_pretrained(name, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise RetrievalError(
                f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}",
                hint="give --encoder a cached hub id or a local folder with safetensors",
            ) from error
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._max_length, self._batch_size = settings["max_length"], settings["batch_size"]

    def digest(self) -> str:
        """Hash of the weights: an index made with another encoder is refused."""
        digest = hashlib.sha256()
        for name, parameter in self._model.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().float().flatten()[:64].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        vectors = []
        for start in range(0, len(texts), self._batch_size):
            batch = self._tokenizer(
                list(texts[start : start + self._batch_size]),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.no_grad():
                hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
        return np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)


def build(
    directory: Path, store: PassageStore, settings: dict[str, Any], progress: Callable[[int, int], None] | None = None
) -> None:
    """Encode all passages and write a flat inner-product index; adds the encoder's digest to `settings`."""
    import faiss

    encoder = Encoder(settings)
    settings["encoder_digest"] = encoder.digest()
    index = None
    done = 0
    for texts in _batches(store, settings["batch_size"]):
        vectors = encoder.encode([settings["passage_prefix"] + text for text in texts])
        if index is None:
            index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        done += len(texts)
        if progress is not None:
            progress(done, len(store))
    faiss.write_index(index, str(directory / FILE))


def _batches(store: PassageStore, size: int) -> Iterator[list[str]]:
    for start in range(0, len(store), size):
        yield [store[row].contents for row in range(start, min(start + size, len(store)))]


class DenseRetriever:
    def __init__(self, directory: Path, store: PassageStore, settings: dict[str, Any]) -> None:
        import faiss

        self._store, self._settings = store, settings
        self._encoder = Encoder(settings)
        if self._encoder.digest() != settings["encoder_digest"]:
            raise RetrievalError(
                f"{directory} was built with other weights of {settings['encoder']}", hint="build the index again"
            )
        try:
            self._index = faiss.read_index(str(directory / FILE))
        except RuntimeError as error:
            raise RetrievalError(f"{directory / FILE} is damaged", hint="build the index again") from error
        if self._index.ntotal != len(store):
            raise RetrievalError(
                f"{directory}: {self._index.ntotal} vectors for {len(store)} passages", hint="build the index again"
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        asked = [row for row, query in enumerate(queries) if query.strip()]
        results: list[list[Hit]] = [[] for _ in queries]
        if asked:
            vectors = self._encoder.encode([self._settings["query_prefix"] + queries[row] for row in asked])
            scores, rows = self._index.search(vectors, min(k, len(self._store)))
            for place, row in enumerate(asked):
                results[row] = hits(self._store, rows[place], scores[place])
        return results
