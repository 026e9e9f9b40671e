"""The bound of a rollout by hand: a model of two layers, one episode and two, a machine of round figures."""

import pytest
from benchmarks.roofline import (
    Machine,
    Step,
    bound,
    cache_bytes,
    shape_of,
    step_bytes,
    step_flops,
    steps,
    weight_bytes,
)
from tests.tiny import qwen

from dgpo_cli.models.shapes import Shape

# Keys are 2 wide; a layer's maps have 2 x 4 x 4 + 2 x 4 x 2 + 3 x 4 x 8 = 144 weights, its norms 8; one more norm of 4.
TINY = Shape(4, 8, layers=2, heads=2, kv_heads=1, vocabulary=10, tied=True, qkv_bias=False)


def test_bytes_of_a_step():
    assert weight_bytes(TINY, 2) == 2 * (2 * (144 + 8) + 4 + 10 * 4) == 696
    assert cache_bytes(TINY, 2) == 2 * 2 * 2 * 2  # keys and values, layers, width, bytes
    assert step_bytes(TINY, Step(rows=3, new=3, context=50, pairs=50), 2) == 696 + 50 * 16


def test_an_output_layer_of_its_own_is_read_and_its_embedding_is_not():
    untied = Shape(4, 8, layers=2, heads=2, kv_heads=1, vocabulary=10, tied=False, qkv_bias=False)
    assert weight_bytes(untied, 2) == weight_bytes(TINY, 2)


def test_operations_of_a_step():
    # Linear maps 2 x 3 x 2 x 144; attention 4 x 2 layers x 4 wide x 6 pairs; output layer 2 x 40.
    assert step_flops(TINY, Step(rows=1, new=3, context=3, pairs=6)) == 1728 + 192 + 80


def test_one_episode():
    """Prompt of 3, two turns of 2, 2 tokens read between them; keys seen by 3 new tokens after 4: 5 + 6 + 7."""
    assert list(steps([2], prompt=3, read=2, turns=2)) == [
        Step(rows=1, new=3, context=3, pairs=1 + 2 + 3),
        Step(rows=1, new=1, context=4, pairs=4),
        Step(rows=1, new=3, context=7, pairs=5 + 6 + 7),
        Step(rows=1, new=1, context=8, pairs=8),
    ]


def test_two_episodes_one_of_which_ends_first_and_a_beginning_that_they_share():
    made = list(steps([1, 2], prompt=3, read=2, turns=2, shared=2))
    assert made[0] == Step(rows=2, new=3 + 1, context=3 + 1, pairs=(1 + 2 + 3) + 3)
    # The first goes on with its token and 2 that it reads (4 + 5 + 6), the second with its token (4).
    assert made[1] == Step(rows=2, new=3 + 1, context=6 + 4, pairs=(4 + 5 + 6) + 4)
    assert [step.rows for step in made] == [2, 2, 1, 1]


def test_a_bound_is_the_slower_of_reading_and_computing_step_by_step():
    passes = list(steps([2], prompt=3, read=2, turns=2))
    read = [696 + 16 * n for n in (3, 4, 7, 8)]
    found = bound(TINY, passes, Machine(bandwidth=1.0, flops=1e9), 2)
    assert found.seconds == found.memory_seconds == sum(read) and found.tokens == 4
    assert found.tokens_per_s == 4 / sum(read)
    # 2,000 operations in the first step, 576 + 128 + 80 in the second, 1728 + 576 + 80 and 576 + 256 + 80 in the others
    found = bound(TINY, passes, Machine(bandwidth=1.0, flops=1.0), 2)
    assert found.seconds == 2000 + 784 + 2384 + 912
    assert found.memory_seconds == 0
    found = bound(TINY, passes, Machine(bandwidth=1.0, flops=2.0), 2)
    assert found.seconds == 1000 + read[1] + 1192 + read[3]
    assert found.memory_seconds == read[1] + read[3]


def test_the_shape_of_a_model_has_its_parameters():
    model = qwen(420)
    assert shape_of(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_more_bandwidth_cannot_make_a_bound_larger():
    passes = list(steps([5, 9, 7], prompt=20, read=11, turns=3))
    slow, fast = (bound(TINY, passes, Machine(b, 1e4), 2).seconds for b in (1e3, 1e5))
    assert slow > fast
    assert bound(TINY, passes, Machine(1e3, 1e4), 2).tokens == 3 * (5 + 9 + 7) == pytest.approx(63)
