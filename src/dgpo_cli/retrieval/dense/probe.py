"""Vectors of a few texts in the record of an index: an encoder that makes others of them is another one.

Its weights and its vocabulary are compared by their digest. How a tokenizer cuts (case, merges) and how a model
computes (heads, activation) stand in files that are also rewritten without any effect, by another version of a library
for one. What they come to is compared instead, with room for how machines round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core import schema
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig

KEY = "probe"
_TEXTS = ("Where was the director of Vertigo born?", "L'École d'été: co-operate in 2024")
_CHARACTERS = 300  # of a passage
_ROUNDING = 1e-3  # ours, of a number of a unit vector
_PROBE = schema.record({"texts": schema.texts(), "vectors": schema.list_of(schema.numbers())})


def probe(encoder: Encoder, passage: str) -> dict[str, Any]:
    """Vectors of texts of ours, and of a passage as it stands and in capitals."""
    texts = [*_TEXTS, passage[:_CHARACTERS], passage[:_CHARACTERS].upper()]
    return {"texts": texts, "vectors": encoder.one_by_one(texts).round(5).tolist()}


def differs(known: Any, encoder: Encoder) -> bool:
    """Whether the encoder makes other vectors than a probe tells, or that is none."""
    if _PROBE.fault(known, "") or {len(row) for row in known["vectors"]} != {encoder.dimensions}:
        return True
    made, told = encoder.one_by_one(known["texts"]), np.array(known["vectors"], dtype=np.float32)
    return made.shape != told.shape or not np.abs(made - told).max() <= _ROUNDING


def encoder_of(directory: Path, config: EncoderConfig, state: Mapping[str, Any]) -> Encoder:
    """The encoder of the index in `directory`, used as it was there. Raises RetrievalError if it is another one.

    An index of an earlier version has no probe.
    """
    encoder = Encoder(replace(config, **state["conventions"]))
    digest = encoder.digest()
    if digest != state["encoder_digest"]:
        raise RetrievalError(
            f"{directory} was built with other {config.encoder} weights: {state['encoder_digest']}, now {digest}",
            hint="put the encoder back, or build the index again with --overwrite",
        )
    if KEY in state and differs(state[KEY], encoder):
        raise RetrievalError(
            f"{directory} was built with {config.encoder} as it cut or computed otherwise: it makes other vectors now",
            hint="put the encoder's configuration and tokenizer back, or build the index again with --overwrite",
        )
    return encoder
