"""What bounds the CPU rows of docs/benchmarks.md: `python benchmarks/what_bounds.py [--json FILE]`.

On one thread of this machine: the rate of matrix products at the shapes of a row and at a large one, the bandwidth of a
copy, and what one call of an operator costs when there is nothing to compute. From these, lower bounds of each row:

- arithmetic: operations that the step cannot do without / the highest rate of any shape measured;
- the same at the rate of the row's own commonest product, which is lower where matrices are small;
- memory: bytes that must be touched once / bandwidth of a copy beyond the caches;
- calls: operators called from Python * the cost of a call without work.

Seconds are CPU time of the process, the least of the repetitions. Shares come from one run under torch.profiler, which
slows calls down, so they lean towards operators: "Python" is what lies between operators, and needs a quiet machine.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from limits import (
    Machine,
    Work,
    bounds,
    call_cost,
    copy_bandwidth,
    decode_work,
    kd_work,
    least,
    product_rate,
    shape_of,
    update_work,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ((1024, 1024, 1024), (512, 64, 64), (64, 64, 64), (64, 128, 128), (64, 64, 636))
COPIES = (1 << 20, 8 << 20, 256 << 20)  # bytes; the last lies beyond every cache
LINEAR = {"aten::mm", "aten::addmm", "aten::linear", "aten::t"}
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "attention")  # parts of names


def profiled(function: Callable[[], object]) -> dict[str, Any]:
    """Shares of the profiled time, calls from Python, and operators in all."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        function()
        wall = time.perf_counter() - started
    seconds = {"linear": 0.0, "attention": 0.0, "other": 0.0}
    operators = [event for event in profiler.events() if is_operator(event.name)]
    for event in operators:
        seconds[kind(event.name)] += event.self_cpu_time_total / 1e6
    shares = {name: value / wall for name, value in seconds.items()}
    return {
        "shares": shares | {"Python": 1 - sum(shares.values())},
        "calls": sum(not any(is_operator(parent.name) for parent in parents(event)) for event in operators),
        "operators": len(operators),
    }


def is_operator(name: str) -> bool:
    return name.startswith(("aten::", "autograd::"))


def parents(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def kind(name: str) -> str:
    """Which share an operator counts to."""
    if name in LINEAR:
        return "linear"
    return "attention" if any(part in name for part in ATTENTION) else "other"


@dataclass(frozen=True)
class Row:
    name: str
    run: Callable[[], object]
    work: Work  # of a run
    steps: int  # of a run
    product: tuple[int, int, int]  # the row's commonest product
    repetitions: int


def rollout_row(work_name: str, size: str, count: int, repetitions: int) -> Row:
    import rollout

    from dgpo_cli.engine.in_process.decoder import Decoder, Pass

    work, model = rollout.WORKS[work_name], rollout.model_of(work_name, size, torch.device("cpu"))
    rollout._engines.clear()  # kept by size alone, and the last row's had another model
    episodes = rollout.episodes_of(work, count, model.config.vocab_size)
    shape, total, steps = shape_of(model.config), Work(), 0
    whole = Decoder.last_hidden

    def seen(mask: Tensor) -> int:
        return int((mask == 0).sum())

    def counted(self: Decoder, new: Pass) -> Tensor:
        nonlocal total, steps
        final, rows = new.final.hidden_keys, new.final.rows
        last = seen(final if rows is None else final[rows])
        pairs = last
        if new.several:
            alone = 0
            if new.single is not None:
                mask, chosen = new.single.hidden_keys, new.single.rows
                alone = seen(mask if chosen is None else mask[chosen])
            pairs = alone + sum(seen(group.hidden_keys[group.real[:, None]]) for group in new.several)
        rows_read = len(new.ids) if new.last is None else len(new.last)
        total, steps = total + decode_work(shape, len(new.ids), rows_read, pairs, last), steps + 1
        return whole(self, new)

    Decoder.last_hidden = counted
    try:
        rollout.ours(model, episodes, work)
    finally:
        Decoder.last_hidden = whole
    product = (count, shape.hidden, shape.hidden)
    name = f"rollout, {work_name}, {size}, {count}"
    return Row(name, lambda: rollout.ours(model, episodes, work), total, steps, product, repetitions)


def kd_row(tokens: int, vocabulary: int) -> Row:
    import kd_step

    run = kd_step.prepare("dgpo", tokens, vocabulary, None, "cpu")
    work = kd_work(tokens, vocabulary, kd_step.H)
    return Row(f"kd, N = {tokens}, V = {vocabulary}", run, work, 1, (256, kd_step.H, min(vocabulary, 16_384)), 2)


def rl_row() -> Row:
    import rl_step

    shape, made = shape_of(rl_step.make("tinyworld", "cpu").config), rl_step.episodes("tinyworld")
    lengths, written = [len(ids) for ids, _, _ in made], sum(sum(row) for _, row, _ in made)
    product = (sum(lengths), shape.hidden, shape.hidden)
    return Row("rl update", rl_step.dgpo("tinyworld", "cpu"), update_work(shape, lengths, written), 1, product, 10)


def measured(row: Row, machine: Machine) -> dict[str, Any]:
    row.run()  # libraries and buffers set up
    seconds = least(row.run, row.repetitions)
    made = profiled(row.run)
    rate = product_rate(*row.product)
    lower = bounds(row.work, made["calls"], machine, rate)
    return {
        "row": row.name, "steps": row.steps, "seconds": seconds, **made, "work": asdict(row.work), "bounds": lower,
        "rate_at_shape": rate, "times_largest_bound": seconds / max(lower.values()),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    bounded = "arithmetic, ms | at its shapes | memory | calls"
    shown = f"row | ms a step | linear | attention | other | Python | calls a step | {bounded} | to the largest bound"
    lines = [f"| {shown} |", "|---|" + "--:|" * shown.count("|")]
    for row in rows:
        steps = row["steps"]
        cells = [row["row"], f"{1e3 * row['seconds'] / steps:.2f}"]
        cells += [f"{row['shares'][name]:.0%}" for name in ("linear", "attention", "other", "Python")]
        cells += [f"{row['calls'] / steps:.0f}", *(f"{1e3 * bound / steps:.2f}" for bound in row["bounds"].values())]
        lines.append(f"| {' | '.join(cells)} | {row['times_largest_bound']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=["rollout", "reference", "kd", "rl"], help="all of them")
    parser.add_argument("--kd", nargs=2, type=int, default=[2_048, 151_936], metavar=("N", "V"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    chosen = asked.rows or ["rollout", "reference", "kd", "rl"]
    torch.set_num_threads(1)
    makers: list[Callable[[], Row]] = []
    if "rollout" in chosen:
        for size, count in (("student", 64), ("student", 512), ("teacher", 64), ("teacher", 512)):
            makers.append(lambda s=size, c=count: rollout_row("tiny", s, c, 20 if c == 64 else 5))
    if "reference" in chosen:
        makers.append(lambda: rollout_row("reference", "student", 64, 2))
    makers += [lambda: kd_row(*asked.kd)] if "kd" in chosen else []
    makers += [rl_row] if "rl" in chosen else []
    rates = {shape: product_rate(*shape) for shape in PRODUCTS}
    bandwidths = {f"{size >> 20} MB": copy_bandwidth(size) for size in COPIES}
    machine = Machine(max(rates.values()), bandwidths[f"{COPIES[-1] >> 20} MB"], call_cost())
    rows = []
    for make in makers:
        rows.append(measured(make(), machine))
        print(f"{rows[-1]['row']}: {rows[-1]['seconds']:.3f} s", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "cpu": platform.processor() or platform.machine(), "load": os.getloadavg()[0], "torch": torch.__version__,
        "commit": commit.stdout.strip(), "gflops": {"x".join(map(str, s)): r / 1e9 for s, r in rates.items()},
        "copy_gb_per_s": {name: rate / 1e9 for name, rate in bandwidths.items()}, "call_us": machine.call * 1e6,
        "rows": rows,
    }  # fmt: skip
    if asked.json is not None:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}))
    print(table(rows))


if __name__ == "__main__":
    main()
