"""How long a step takes at least: operations, bytes and calls of operators over what a machine does of them per second.

Formulas count multiplications and additions as one operation each, and bytes as if each were touched once and nothing
stayed in a cache. Rates are measured on one thread, as CPU time of the process, the least of many repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NUMBER = 4  # bytes of a float32


@dataclass(frozen=True)
class Shape:
    """Of a model of the Llama family with heads of hidden / heads dimensions."""

    layers: int
    hidden: int
    inner: int
    heads: int
    shared: int  # key-value heads
    vocabulary: int

    @property
    def width(self) -> int:
        return self.hidden // self.heads

    @property
    def attention_weights(self) -> int:
        """Of one layer: queries, keys, values, output; biases left out."""
        return 2 * self.hidden * self.hidden + self.key_value_weights

    @property
    def key_value_weights(self) -> int:
        return 2 * self.hidden * self.shared * self.width

    @property
    def layer_weights(self) -> int:
        return self.attention_weights + 3 * self.hidden * self.inner

    @property
    def weights(self) -> int:
        """All of them, the output layer tied to the embedding."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden


@dataclass(frozen=True)
class Work:
    linear: float = 0.0  # operations, a multiplication and an addition counted as two
    attention: float = 0.0  # operations
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention, self.bytes + other.bytes)


def decode_work(shape: Shape, tokens: int, rows: int, pairs: int, last_pairs: int) -> Work:
    """One forward pass of a rollout: `tokens` new ones of `rows` rows, logits after each row's last.

    `pairs` are the query-key pairs of all new tokens, `last_pairs` those of the rows' last tokens, which are also the
    keys held. In the last layer only each row's last token goes beyond keys and values. Weights are read once, keys and
    values once per layer, logits written once and read once.
    """
    beyond = shape.layer_weights - shape.key_value_weights
    linear = 2 * tokens * ((shape.layers - 1) * shape.layer_weights + shape.key_value_weights)
    linear += 2 * rows * (beyond + shape.vocabulary * shape.hidden)
    attention = 4 * shape.heads * shape.width * ((shape.layers - 1) * pairs + last_pairs)
    cache = 2 * shape.layers * shape.shared * shape.width * last_pairs
    return Work(linear, attention, NUMBER * (shape.weights + cache + 2 * rows * shape.vocabulary))


def update_work(shape: Shape, lengths: Sequence[int], written: int) -> Work:
    """Gradient and AdamW step over sequences of these lengths, `written` tokens of which go through the vocabulary.

    Backward takes two products for each of forward's. AdamW reads weight, gradient and two moments and writes three.
    """
    linear = 6 * (sum(lengths) * shape.layers * shape.layer_weights + written * shape.vocabulary * shape.hidden)
    attention = 12 * shape.hidden * shape.layers * sum(n * (n + 1) // 2 for n in lengths)
    return Work(linear, attention, NUMBER * (7 * shape.weights + 4 * written * shape.vocabulary))


def kd_work(tokens: int, vocabulary: int, hidden: int) -> Work:
    """Hidden states to gradients: four products of 2 N V H (teacher, student, and two on the student's way back).

    Both heads are read, the student's a second time, its gradient is written; the logits of both, too many for a cache,
    are written and read once, and so is the student's gradient of them.
    """
    heads, logits = 4 * vocabulary * hidden, 6 * tokens * vocabulary
    return Work(linear=8 * tokens * vocabulary * hidden, bytes=NUMBER * (heads + logits))


@dataclass(frozen=True)
class Machine:
    peak: float  # operations per second of the best shape
    bandwidth: float  # bytes per second, read and written bytes of a copy counted both
    call: float  # seconds of an operator call without work


def bounds(work: Work, calls: int, machine: Machine, rate: float) -> dict[str, float]:
    """Seconds at least, each if nothing else took time; `rate` is that of products at the row's own shape."""
    operations = work.linear + work.attention
    return {
        "arithmetic": operations / machine.peak,
        "at_shape": operations / rate,
        "memory": work.bytes / machine.bandwidth,
        "calls": calls * machine.call,
    }


def least(function: Callable[[], object], repetitions: int, inner: int = 1) -> float:
    """Seconds of CPU of one call, the least of the repetitions."""
    taken = []
    for _ in range(repetitions):
        started = time.process_time()
        for _ in range(inner):
            function()
        taken.append((time.process_time() - started) / inner)
    return min(taken)


def product_rate(rows: int, inside: int, columns: int) -> float:
    """Operations per second of [rows, inside] by [inside, columns]."""
    a, b = torch.randn(rows, inside), torch.randn(columns, inside)
    operations = 2 * rows * inside * columns
    repeats = max(1, min(200, 10**8 // operations))
    return operations / least(lambda: torch.nn.functional.linear(a, b), 20, repeats)


def copy_bandwidth(size: int) -> float:
    source, target = torch.ones(size // NUMBER), torch.zeros(size // NUMBER)
    return 2 * size / least(lambda: target.copy_(source), 10, max(1, 10**7 // size))


def call_cost() -> float:
    one = torch.ones(1)
    return least(lambda: torch.add(one, one), 30, 1_000)


def shape_of(config: Any) -> Shape:
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )
