"""Models of the paper's true sizes with random weights: for measuring time and memory where nothing can be downloaded.

The numbers are those of the published config.json files; what a random model writes means nothing.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from dgpo_cli.errors import ConfigError

# name: (hidden, intermediate, layers, heads, key-value heads, vocabulary, tied embeddings)
_SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "qwen-0.5b": (896, 4_864, 24, 14, 2, 151_936, True),
    "qwen-3b": (2_048, 11_008, 36, 16, 2, 151_936, True),
    "qwen-7b": (3_584, 18_944, 28, 28, 4, 152_064, False),
    "llama-1b": (2_048, 8_192, 16, 32, 8, 128_256, True),
    "llama-8b": (4_096, 14_336, 32, 32, 8, 128_256, False),
}


def configuration(name: str) -> Qwen2Config | LlamaConfig:
    """Raises ConfigError for a size that is not known."""
    if name not in _SHAPES:
        raise ConfigError(f"no random model {name!r}", hint=f"choose one of: {', '.join(_SHAPES)}")
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = _SHAPES[name]
    qwen = name.startswith("qwen")
    kind = Qwen2Config if qwen else LlamaConfig
    return kind(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768 if qwen else 131_072,
        rms_norm_eps=1e-6 if qwen else 1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6 if qwen else 5e5},
    )


def random_model(name: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode; the same weights for the same seed and device."""
    config = configuration(name)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model
