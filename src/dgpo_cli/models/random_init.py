"""Models of true sizes with random weights: for measuring time and memory where nothing can be downloaded.

The numbers are those of the published config.json files; what a random model writes means nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from dgpo_cli.errors import ConfigError
from dgpo_cli.models.shapes import SHAPES


def configuration(name: str) -> Qwen2Config | Qwen3Config | LlamaConfig:
    """Raises ConfigError for a size that is not known."""
    if name not in SHAPES:
        raise ConfigError(f"no random model {name!r}", hint=f"choose one of: {', '.join(SHAPES)}")
    shape = SHAPES[name]
    qwen = name.startswith("qwen")
    kind: Any = Qwen3Config if shape.qk_norm else Qwen2Config if qwen else LlamaConfig
    config: Qwen2Config | Qwen3Config | LlamaConfig = kind(
        **({"head_dim": shape.head_size} if shape.head_size else {}),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768 if qwen else 131_072,
        rms_norm_eps=1e-6 if qwen else 1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6 if qwen else 5e5},
    )
    return config


def random_model(name: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode; the same weights for the same seed and device."""
    config = configuration(name)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model
