"""Counter-based sampling: a token depends on (seed, episode, turn, position) and its logits, on nothing else.

One uniform number per token is turned into a token by the inverse of the cumulative distribution. Neither the other
episodes of a batch nor a restart in between changes the draws of an episode.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 128  # tokens
_AT_ONCE = 1 << 23  # logits
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64 (Steele, Lea, Flood 2014)


def stream_key(seed: int, key: str, turn: int) -> int:
    """64-bit name of the random stream of one turn."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, one per (key, position); both uint64 of one shape."""
    with np.errstate(over="ignore"):
        z = keys + (positions + np.uint64(1)) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    result: np.ndarray = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return result


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor]:
    """Token ids [R] and their log-probabilities [R] from float32 logits [R, V].

    `temperature` [R]: 0 takes the most likely token and reports its log-probability at temperature 1. `greedy` says
    that it is 0 for all. A few rows at a time, so that a large vocabulary needs no further tensor of its size.
    """
    rows = max(1, _AT_ONCE // logits.shape[1])
    if rows >= len(logits):
        return _sample(logits, uniform, temperature, greedy)
    parts = [
        _sample(logits[i : i + rows], uniform[i : i + rows], temperature[i : i + rows], greedy)
        for i in range(0, len(logits), rows)
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(logits: Tensor, uniform: Tensor, temperature: Tensor, all_greedy: bool) -> tuple[Tensor, Tensor]:
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, torch.ones_like(temperature), temperature)[:, None]
    probabilities = scaled.softmax(dim=-1)
    if all_greedy:
        tokens = logits.argmax(dim=-1)
    else:
        tokens = _inverse_cdf(probabilities, uniform)
        if greedy.device.type != "cpu" or bool(greedy.any()):  # to ask a GPU would be to wait for it
            tokens = torch.where(greedy, logits.argmax(dim=-1), tokens)
    return tokens, probabilities.gather(1, tokens[:, None]).squeeze(1).log()


def _inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [R] at which the cumulative probability [R, V] first exceeds `uniform` of its total.

    In two levels, the block and then the place in it, so that only sums of blocks and one block are kept in float64.
    """
    count, size = probabilities.shape
    padded = functional.pad(probabilities, (0, -size % _BLOCK)).view(count, -1, _BLOCK)
    blocks = padded.sum(-1, dtype=torch.float64).cumsum(-1)  # [R, V / block]
    target = (uniform * blocks[:, -1])[:, None]
    block = torch.searchsorted(blocks, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded[torch.arange(count, device=block.device), block.squeeze(1)].double().cumsum(-1)
    # Sums of a block may differ in the last bit from the cumulative sum in it: stay where there is probability.
    left = torch.minimum(target - before, torch.nextafter(inside[:, -1:], torch.zeros_like(before)))
    place = torch.searchsorted(inside, left, right=True)
    return (block * _BLOCK + place).squeeze(1).clamp_(max=size - 1)
