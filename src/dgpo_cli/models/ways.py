"""Where CUDA offers two ways of which only a measurement on the card can say which is faster: one switch for each.

Either way is right; they differ in speed, and in the order of sums. A benchmark sets a switch before it makes what it
measures: `WAYS.cudnn_attention = True`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(slots=True)
class Ways:
    cudnn_attention: bool = False  # for the engine's masked attention; cuDNN plans again for every shape
    fused_adam: bool = True  # one kernel for a list of tensors, without a temporary of their size
    steps_per_doubling: int = 4  # sizes of windows and of keys that are captured; fewer graphs, more idle rows
    block_logits: int = 1 << 24  # whose losses are computed at once: fewer launches, more memory


WAYS = Ways()
_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def masked_attention(device: torch.device) -> Iterator[None]:
    """The kernels that attention with a mask may use while it holds."""
    if device.type != "cuda" or WAYS.cudnn_attention:
        yield
        return
    with sdpa_kernel(_WITHOUT_CUDNN):
        yield
