"""Memory of a rollout engine, from sizes alone: rules that the engine and `dgpo plan` share.

Imports no torch. Symbols: S heads of keys, D of one head; `kv_width` is S * D.
"""

from __future__ import annotations

from collections.abc import Iterable

ALIGNED = 8  # tokens; multiple that attention kernels on GPUs require of a mask's last dimension
PASS_TOKENS = 16_384  # new tokens of one forward pass at most
_PASS_BYTES_CPU = 1 << 26  # of a layer's activations in one pass, where tokens beyond a few hundred gain nothing
_LEAST_PASS = 1_024  # tokens
STEPS = 4  # sizes of windows per doubling; on a GPU each is captured once
_LEAST_LENGTH = 512  # tokens
# Pairs of a new token and a key that one row's mask has, ours: 4,096 tokens are read in one pass, as many as an episode
# has by default. Of longer texts the mask would grow with the square of the length.
_MASK_PAIRS = 1 << 24
_LEAST_PIECE = 64  # tokens


def bucket(size: int, limit: int, steps: int = STEPS) -> int:
    """The smallest size from `size` on that is worth a graph: a multiple of 8, and at most one `steps`th too large."""
    unit = max(8, (1 << (size - 1).bit_length()) // (2 * steps))
    return min(-(-size // unit) * unit, limit)


def aligned(tokens: int) -> int:
    return -(-tokens // ALIGNED) * ALIGNED


def pass_tokens(hidden: int, intermediate: int, itemsize: int, *, accelerated: bool) -> int:
    """New tokens that go through a model together."""
    if accelerated:
        return PASS_TOKENS
    per_token = 3 * (hidden + intermediate) * itemsize
    return max(_LEAST_PASS, min(PASS_TOKENS, _PASS_BYTES_CPU // per_token))


def piece(tokens: int, held: int) -> int:
    """How many of the `tokens` that are new in a row, which holds `held`, are read in one pass."""
    return min(tokens, max(_LEAST_PIECE, _MASK_PAIRS // (held + tokens)))


def grown(rows: int, tokens: int, *, slots: int, capacity: int) -> tuple[int, int]:
    """Rows and tokens of each that a cache on an accelerator is made for when it holds `rows` of up to `tokens`.

    Lengths double, since captured graphs are invalid once the cache is reallocated.
    """
    return bucket(rows, slots), min(max(_LEAST_LENGTH, 1 << (tokens - 1).bit_length()), aligned(capacity))


def cache_bytes(
    lengths: Iterable[int],
    *,
    layers: int,
    kv_width: int,
    itemsize: int,
    slots: int,
    capacity: int,
    accelerated: bool,
) -> int:
    """Keys and values of open episodes that hold so many tokens each.

    On a CPU episodes take the memory of their entries, to within a page per layer and head, and free it at their end.
    On an accelerator a cache stays as large as it has been: `grown` for the most and the longest episodes so far.
    """
    held = list(lengths)
    if not held:
        return 0
    tokens = sum(held)
    if accelerated:
        rows, length = grown(len(held), max(held), slots=slots, capacity=capacity)
        tokens = rows * length
    return 2 * layers * kv_width * itemsize * tokens
