"""Linear layers in 8 bit by bitsandbytes (LLM.int8, Dettmers et al. 2022): a teacher at half the memory of bf16."""

from __future__ import annotations

import logging

import torch
from transformers import BitsAndBytesConfig

OUTLIER_THRESHOLD = 6.0  # of the paper: columns with larger activations stay in 16 bit


def quantization() -> BitsAndBytesConfig:
    """For from_pretrained; embeddings and output layer stay as they are. Works on CPU too."""
    # It would say for every layer and call that activations are cast to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIER_THRESHOLD)


def count_eight_bit(model: torch.nn.Module) -> int:
    """Number of modules whose weights are kept in 8 bit."""
    from bitsandbytes.nn.modules import Linear8bitLt

    return sum(isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8 for module in model.modules())
