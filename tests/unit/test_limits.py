"""The lower bounds of the benchmarks by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.limits import Machine, Shape, Work, bounds, decode_work, kd_work, update_work

# 8 hidden, 4 heads of 2 dimensions, 2 key-value heads: queries and output 64 each, keys and values 32 each;
# feed-forward 3 * 8 * 3 = 72; so 264 weights a layer, of which 64 make keys and values.
SMALL = Shape(layers=2, hidden=8, inner=3, heads=4, shared=2, vocabulary=10)


def test_weights_are_counted_once():
    assert SMALL.key_value_weights == 64 and SMALL.attention_weights == 192
    assert SMALL.layer_weights == 264 and SMALL.weights == 2 * 264 + 80


def test_a_pass_of_a_rollout():
    """Two rows: one new token that sees 5 keys, and three that see 2, 3 and 4."""
    work = decode_work(SMALL, tokens=4, rows=2, pairs=5 + 2 + 3 + 4, last_pairs=5 + 4)
    # The first layer for 4 tokens; of the last one keys and values for 4, the rest and the head for 2.
    assert work.linear == 2 * (4 * 264 + 4 * 64 + 2 * (264 - 64) + 2 * 80)
    # A pair of one head: 2 products of 2 dimensions, 4 operations each, so 8; 4 heads; 14 pairs, then 9.
    assert work.attention == 8 * 4 * (14 + 9)
    # Keys and values: 2 of 2 heads of 2 dimensions in 2 layers, 16 numbers a key; logits are written and read.
    assert work.bytes == 4 * (608 + 16 * 9 + 2 * 2 * 10)


def test_an_update():
    """Sequences of 2 and 3 tokens, so 3 + 6 pairs; two tokens go through the vocabulary."""
    work = update_work(SMALL, [2, 3], 2)
    assert work.linear == 3 * 2 * (5 * 2 * 264 + 2 * 80)
    assert work.attention == 3 * 4 * 8 * 2 * 9
    assert work.bytes == 4 * (7 * 608 + 4 * 2 * 10)


def test_a_kd_step_is_four_products():
    work = kd_work(tokens=3, vocabulary=5, hidden=7)
    assert work.linear == 4 * (2 * 3 * 5 * 7) and work.attention == 0
    assert work.bytes == 4 * (4 * 35 + 6 * 15)


def test_bounds_are_work_over_rates():
    machine = Machine(peak=100.0, bandwidth=10.0, call=0.5)
    found = bounds(Work(150.0, 50.0, 30.0) + Work(bytes=10.0), calls=6, machine=machine, rate=40.0)
    assert found == pytest.approx({"arithmetic": 2.0, "at_shape": 5.0, "memory": 4.0, "calls": 3.0})


@pytest.mark.slow
def test_what_bounds_a_row_is_measured_beside_it():
    """The script that uses these formulas, on its shortest row."""
    script = Path(__file__).parents[2] / "benchmarks" / "what_bounds.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--rows", "rl"], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = [line for line in ended.stdout.splitlines() if line.startswith("| rl update")]
    measured, arithmetic = (float(row.split("|")[place]) for place in (2, 8))
    assert measured > arithmetic > 0
