"""Model configurations of the offline world, Qwen2 architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Config


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of a Qwen2 model."""

    hidden: int
    layers: int
    heads: int
    mlp: float = 2.0  # width of the feed-forward layers in hidden sizes


TEACHER = ModelSize(hidden=128, layers=2, heads=4)
# Narrow feed-forward layers leave a model little room to know names by heart, so it learns to copy them.
STUDENT = ModelSize(hidden=64, layers=2, heads=4, mlp=0.5)
POSITIONS = 384  # longest episode in tokens


def qwen2_config(size: ModelSize, vocabulary: int) -> Qwen2Config:
    """The configuration of a model of `size` over `vocabulary` tokens."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=int(size.mlp * size.hidden),
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=POSITIONS,
        # Qwen2's own 0.02 and 1,000,000 suit wide models and long texts: these train at a third of the speed with them.
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000.0},
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
