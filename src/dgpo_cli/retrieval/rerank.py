"""Reranking by a cross-encoder (Nogueira and Cho 2019): it reads query and passage together, for the best few only.

A setting of the search, not of the index: any index, also one behind a server, may be reranked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from dgpo_cli.core.config import setting
from dgpo_cli.core.hub import absent, unreachable
from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.text import composed
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError, RetrievalError, first_line
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.device import device


@dataclass(frozen=True, slots=True)
class RerankConfig:
    model: str | None = setting(
        None, "hub id or folder of a cross-encoder with one score; none leaves the order as it is"
    )
    depth: int = setting(50, "passages read again per query, or k if more", source="ours")
    max_length: int = setting(512, "tokens of query and passage; of the passage the rest is cut", source="ours")
    batch_size: int = setting(64, "pairs", source="ours")

    def __post_init__(self) -> None:
        if min(self.depth, self.batch_size) < 1 or self.max_length < 8:
            raise ConfigError(
                f"rerank: depth {self.depth}, max_length {self.max_length} or batch_size {self.batch_size} too small",
                hint="give a depth and a batch_size of 1 or more, and a max_length of 8 or more",
            )
        if self.model is None and any(getattr(self, setting.name) != setting.default for setting in fields(self)):
            raise ConfigError(
                "settings of reranking have no effect without a model",
                hint="give -o rerank.model= a cross-encoder, or leave them out",
            )


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What `-o` sets for the commands that search and have no settings of their own."""

    rerank: RerankConfig = field(default_factory=RerankConfig)


class Reranked:
    """The retriever's best `depth` in the order of the cross-encoder's scores, equal ones in the retriever's."""

    def __init__(self, retriever: Retriever, config: RerankConfig) -> None:
        """Raises RetrievalError for a model that cannot be loaded, ConfigError for one that gives no single score."""
        assert config.model is not None, "without a model there is nothing to rerank by"
        hint = "give -o rerank.model= a cached hub id, or a local folder with safetensors and a tokenizer"
        if what := absent(config.model):
            raise RetrievalError(f"reranker {config.model!r} cannot be loaded: {what}", hint=hint)
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification

        from dgpo_cli.retrieval.dense.encoder import load_safely

        self._retriever, self._config = retriever, config
        reason = None if Path(config.model).is_dir() else unreachable()
        try:
            self._tokenizer, self._model, about = load_safely(
                AutoModelForSequenceClassification, config.model, offline=reason is not None
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            pass_on(error)
            what = f"it is not cached, and {reason}" if reason else first_line(error)
            raise RetrievalError(f"reranker {config.model!r} cannot be loaded: {what}", hint=hint) from error
        if about["missing_keys"] or self._model.config.num_labels != 1:
            what = "it has no head of its own" if about["missing_keys"] else f"it has {self._model.config.num_labels}"
            raise ConfigError(
                f"{config.model} does not give one score for a pair of texts: {what}",
                hint="give a cross-encoder for passage ranking, such as cross-encoder/ms-marco-MiniLM-L6-v2",
            )
        positions = self._model.config.to_dict().get("max_position_embeddings")
        self._length = min(config.max_length, positions) if isinstance(positions, int) else config.max_length
        self._model.eval().to(device())

    @property
    def digest(self) -> str:
        """Hash of the weights, the vocabulary and the settings that the order depends on."""
        from dgpo_cli.retrieval.dense.encoder import vocabulary

        digest = hashlib.sha256(f"{self._config.depth} {self._length}".encode())
        for name, parameter in sorted(self._model.state_dict().items()):
            digest.update(name.encode() + parameter.cpu().numpy().tobytes())
        digest.update(vocabulary(self._tokenizer))
        return digest.hexdigest()[:16]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = self._retriever.search(queries, max(k, self._config.depth))
        pairs = [(query, hit) for query, hits in zip(queries, found, strict=True) for hit in hits]
        scores = iter(self._scores(pairs))
        results = []
        for hits in found:
            scored = [replace(hit, score=next(scores)) for hit in hits]
            best = sorted(scored, key=lambda hit: (-hit.score, hit.rank))[:k]
            results.append([replace(hit, rank=rank) for rank, hit in enumerate(best, start=1)])
        return results

    def _scores(self, pairs: Sequence[tuple[str, Hit]]) -> list[float]:
        import torch

        texts = [(composed(q), composed(f"{hit.passage.title}\n{hit.passage.text}".strip())) for q, hit in pairs]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place][0]) + len(texts[place][1]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), self._config.batch_size):
            places = order[start : start + self._config.batch_size]
            batch = self._tokenizer(
                [texts[place][0] for place in places],
                [texts[place][1] for place in places],
                padding=True,
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.no_grad():
                logits = self._model(**batch).logits.float()[:, 0]  # [B]
            if not torch.isfinite(logits).all():
                raise RetrievalError(
                    f"reranker {self._config.model!r} gives scores that are not finite", hint="its weights are broken"
                )
            for place, score in zip(places, logits.tolist(), strict=True):
                scores[place] = score
        return scores
