"""Linear layers in 8 bit by bitsandbytes (LLM.int8, Dettmers et al. 2022): a teacher at half the memory of bf16."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig


def quantization() -> BitsAndBytesConfig:
    """Outlier threshold 6 as in the paper; embeddings and output layer stay as they are."""
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)


def count_eight_bit(model: torch.nn.Module) -> int:
    """Number of modules whose weights are kept in 8 bit."""
    from bitsandbytes.nn import Linear8bitLt

    return sum(isinstance(module, Linear8bitLt) for module in model.modules())
