"""Texts to unit vectors with any transformers encoder: prefix, pooling over the attention mask, L2 norm, float32.

Prefixes and pooling are part of how an encoder was trained; with others it ranks badly without an error. So they are
taken from the files next to its weights, in the form of Sentence Transformers, or for E5 (Wang et al. 2022), which
states its prefixes on its page only, from its name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dgpo_cli.core import schema
from dgpo_cli.core.hub import absent, quiet_loading, unreachable, without_pickle
from dgpo_cli.core.machine import GIB, MARGIN, free_main
from dgpo_cli.core.machine_faults import pass_on, require_openable
from dgpo_cli.core.text import composed
from dgpo_cli.errors import ConfigError, RetrievalError, first_line
from dgpo_cli.retrieval.device import device

_E5 = re.compile(r"(?:^|[/_-])e5[_-]")
_POOLING: dict[str, Literal["mean", "cls"]] = {"mean_tokens": "mean", "cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    encoder: str = field(default="intfloat/e5-base-v2", metadata={"source": "Search-R1", "help": "hub id or folder"})
    query_prefix: str | None = field(default=None, metadata={"source": "the encoder's own"})
    passage_prefix: str | None = field(default=None, metadata={"source": "the encoder's own"})
    pooling: Literal["mean", "cls"] | None = field(default=None, metadata={"source": "the encoder's own, or mean"})
    max_length: int = field(default=256, metadata={"source": "Search-R1", "help": "tokens of a query or passage"})
    batch_size: int = field(default=128, metadata={"source": "ours"})

    def __post_init__(self) -> None:
        if self.max_length < 3 or self.batch_size < 1:
            raise ConfigError(
                f"max_length = {self.max_length}, batch_size = {self.batch_size}: too small",
                hint="give a max_length of 3 or more and a batch_size of 1 or more",
            )


@dataclass(frozen=True, slots=True)
class Conventions:
    query_prefix: str
    passage_prefix: str
    pooling: Literal["mean", "cls"]


class Encoder:
    """`conventions` are those of the configuration, and the encoder's own where that has none. `truncated` counts
    the texts that were longer than `max_length` tokens and were cut.
    """

    def __init__(self, config: EncoderConfig) -> None:
        hint = "give --encoder a cached hub id, or a local folder with safetensors and a tokenizer"
        if what := absent(config.encoder):
            raise RetrievalError(f"encoder {config.encoder!r} cannot be loaded: {what}", hint=hint)
        from safetensors import SafetensorError
        from transformers import AutoModel

        self._config = config
        self.truncated = 0
        reason = None if Path(config.encoder).is_dir() else unreachable()
        offline = reason is not None
        try:
            self._tokenizer, self._model, about = load_safely(AutoModel, config.encoder, offline=offline)
            self._model.eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            pass_on(error)
            what = f"it is not cached, and {reason}" if offline else first_line(error)
            raise RetrievalError(f"encoder {config.encoder!r} cannot be loaded: {what}", hint=hint) from error
        # A pooler is on top of the hidden states that are pooled here, and checkpoints often come without one.
        missing = sorted(key for key in about["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise RetrievalError(
                f"encoder {config.encoder!r} lacks {len(missing)} weights of its own configuration, first {missing[0]}",
                hint="download it again, or give --encoder a model that was saved whole",
            )
        self.conventions = _conventions(config, offline)
        positions = self._model.config.to_dict().get("max_position_embeddings")
        if isinstance(positions, int) and config.max_length > positions:
            raise ConfigError(
                f"max_length = {config.max_length}, but {config.encoder} reads {positions} tokens at most",
                hint=f"give -o max_length={positions} or less",
            )
        self.device = device()
        self._model.to(self.device)

    @property
    def dimensions(self) -> int:
        return int(self._model.config.hidden_size)

    def digest(self) -> str:
        """Hash of the weights and the vocabulary: vectors of two encoders with equal digests are comparable."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.cpu().numpy().tobytes())
        digest.update(vocabulary(self._tokenizer))
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        """Unit vectors [n, H], float32, in the order of `texts`, which are read in NFC. Raises RetrievalError if one
        is not finite.
        """
        prefixed = [composed(prefix + text) for text in texts]
        order = sorted(range(len(prefixed)), key=lambda place: len(prefixed[place]))  # like lengths, little padding
        size = self._config.batch_size
        parts = [
            self._batch([prefixed[i] for i in order[start : start + size]]) for start in range(0, len(order), size)
        ]
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if parts:
            vectors[order] = np.concatenate(parts)
        if not np.isfinite(vectors).all():
            raise RetrievalError(
                f"encoder {self._config.encoder!r} gives vectors that are not finite", hint="its weights are broken"
            )
        return vectors

    def one_by_one(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, H] of queries, each encoded alone; no text is counted as cut."""
        before = self.truncated
        prefix = self.conventions.query_prefix
        made = np.concatenate([self._batch([composed(prefix + text)]) for text in texts])
        self.truncated = before
        return made

    def count_truncated(self, texts: Sequence[str], prefix: str) -> None:
        """Add to `truncated` those of the texts that are longer than `max_length` tokens, as encoding them would."""
        limit = self._config.max_length
        self.truncated += sum(
            len(self._tokenizer(composed(prefix + text), verbose=False)["input_ids"]) > limit for text in texts
        )

    def _batch(self, texts: list[str]) -> np.ndarray:
        import torch

        limit = self._config.max_length
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        full = (batch["attention_mask"].sum(1) == limit).nonzero().flatten().tolist()
        self.truncated += sum(len(self._tokenizer(texts[row], verbose=False)["input_ids"]) > limit for row in full)
        batch = batch.to(self._model.device)
        with torch.no_grad():
            hidden = self._model(**batch).last_hidden_state.float()  # [B, T, H]
        if self.conventions.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = batch["attention_mask"][..., None].float()
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors


def vocabulary(tokenizer: Any) -> bytes:
    """The pieces that a tokenizer knows, as bytes to be hashed."""
    return json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()


def load_safely(kind: Any, name: str, *, offline: bool) -> tuple[Any, Any, Mapping[str, Any]]:
    """Tokenizer, model in float32, and what transformers reports of its weights; `kind` is an Auto class.

    No code of its own and safetensors only: a model from a stranger must not be able to run code. Raises ConfigError
    where main memory, through which every model goes, does not hold it.
    """
    import torch
    from transformers import AutoTokenizer

    _require_room(name, offline)
    safe = {"trust_remote_code": False, "local_files_only": offline}
    tokenizer = AutoTokenizer.from_pretrained(name, **safe)
    with quiet_loading(), without_pickle():
        model, about = kind.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **safe
        )
    return tokenizer, model, about


def _require_room(name: str, offline: bool) -> None:
    """Checks a folder; a model of the hub is checked once it is downloaded."""
    require_openable(Path(name))
    size = sum(file.stat().st_size for file in Path(name).glob("*.safetensors"))
    if not size:
        return
    stored = _beside(name, "config.json", offline)
    if str(stored.get("dtype") or stored.get("torch_dtype")) in ("bfloat16", "float16"):
        size *= 2  # in float32
    free = free_main() * (1 - MARGIN)
    if size > free:
        raise ConfigError(
            f"the weights of {name} take {size / GIB:.2f} GiB and {free / GIB:.2f} GiB of memory are free for them",
            hint="take a smaller encoder or reranker, or free some memory: `dgpo doctor` shows what is here",
        )


def encoder_state(encoder: Encoder) -> dict[str, Any]:
    """The record of an encoder in an index."""
    return {"encoder_digest": encoder.digest(), "conventions": asdict(encoder.conventions)}


def _conventions(config: EncoderConfig, offline: bool) -> Conventions:
    """Raises ConfigError for an encoder that pools in a way that is not known here."""
    prompts = _beside(config.encoder, "config_sentence_transformers.json", offline).get("prompts") or {}
    if not prompts and _E5.search(config.encoder.lower()):
        prompts = {"query": "query: ", "passage": "passage: "}
    passage = prompts.get("passage", prompts.get("document", ""))
    pooling = config.pooling
    if pooling is None:
        modes = _beside(config.encoder, "1_Pooling/config.json", offline)
        used = [name.removeprefix("pooling_mode_") for name, is_used in modes.items() if is_used is True]
        pooling = _POOLING.get(next((name for name in used if name != "include_prompt"), "mean_tokens"))
        if pooling is None:
            raise ConfigError(
                f"{config.encoder} pools by {', '.join(used)}; known are mean and cls",
                hint="give another --encoder, or -o pooling=mean to try",
            )
    return Conventions(
        query_prefix=prompts.get("query", "") if config.query_prefix is None else config.query_prefix,
        passage_prefix=passage if config.passage_prefix is None else config.passage_prefix,
        pooling=pooling,
    )


_BESIDE = schema.record({}, {"prompts": schema.maybe(schema.map_of(schema.text()))})


def _beside(encoder: str, name: str, offline: bool) -> dict[str, Any]:
    """A JSON file of the encoder's folder or repository; empty if it has none."""
    from transformers.utils.hub import cached_file

    file = cached_file(
        encoder, name, local_files_only=offline, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if file is None:
        return {}
    content: dict[str, Any] = schema.read_record(
        Path(file), _BESIDE, hint="download the encoder again", error=RetrievalError
    )
    return content
