"""The least time that a rollout can take on a machine: what every decoding step has to read, and has to compute.

A step reads all weights once and the keys and values of every running episode; it cannot take less than those bytes
over the memory's bandwidth, nor less than its multiplications over what the machine multiplies (Williams et al. 2009,
"Roofline"). All episodes run at once; prompts and observations go through the model in the step that needs them, and
what prompts begin with in common once. Sampling, norms, rotary embeddings and launches count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgpo_cli.models.shapes import Shape


@dataclass(frozen=True, slots=True)
class Machine:
    bandwidth: float  # bytes per second
    flops: float  # floating-point operations per second, two for a multiplication and its addition


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of the model, summed over the episodes that run."""

    rows: int  # episodes; each gets one token
    new: int  # tokens that go through the model
    context: int  # tokens whose keys and values are read or written
    pairs: int  # queries times the keys that each sees


@dataclass(frozen=True, slots=True)
class Bound:
    seconds: float
    memory_seconds: float  # of steps that memory bounds; arithmetic bounds the others
    tokens: int  # generated

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def shape_of(config: Any) -> Shape:
    """Of a Qwen2 or Llama configuration."""
    return Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        tied=config.tie_word_embeddings,
        qkv_bias=config.model_type == "qwen2",
    )


def weight_bytes(shape: Shape, size: int) -> int:
    """Read by every step: the layers and the output layer. Of an embedding of its own only some rows are read."""
    return size * (shape.body + shape.head_parameters)


def cache_bytes(shape: Shape, size: int) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_width * size


def step_bytes(shape: Shape, step: Step, size: int) -> int:
    return weight_bytes(shape, size) + step.context * cache_bytes(shape, size)


def step_flops(shape: Shape, step: Step) -> int:
    """Linear maps of new tokens, scores and sums of attention, and the output layer for one token of each row."""
    linear = 2 * step.new * shape.layers * shape.layer_linear
    attention = 4 * shape.layers * shape.query_width * step.pairs
    return linear + attention + 2 * step.rows * shape.head_parameters


def steps(lengths: Sequence[int], *, prompt: int, read: int, turns: int, shared: int = 0) -> Iterator[Step]:
    """Passes of episodes whose `turns` turns have `lengths` tokens each, with `read` tokens before the later ones."""
    length = np.array(lengths, dtype=np.int64)
    for place in range(turns * int(length.max())):
        running = length[place < turns * length]
        after = prompt + read * (place // running) + place  # tokens of each context, those of this pass included
        before = np.zeros_like(after) if not place else prompt + read * ((place - 1) // running) + place - 1
        new = after - before
        pairs = new * before + new * (new + 1) // 2
        again = 0 if place else shared * (len(running) - 1)  # what only the first of them has to compute
        yield Step(
            rows=len(running),
            new=int(new.sum()) - again,
            context=int(after.sum()) - again,
            pairs=int(pairs.sum()) - (again // shared * (shared * (shared + 1) // 2) if again else 0),
        )


def bound(shape: Shape, passes: Iterable[Step], machine: Machine, size: int) -> Bound:
    """`size` is that of one number in bytes: 2 in bf16."""
    total = by_memory = 0.0
    tokens = 0
    for step in passes:
        reading = step_bytes(shape, step, size) / machine.bandwidth
        computing = step_flops(shape, step) / machine.flops
        total += max(reading, computing)
        by_memory += reading if reading >= computing else 0.0
        tokens += step.rows
    return Bound(total, by_memory, tokens)
