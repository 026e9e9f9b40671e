"""What training a real model in bf16 on a CPU holds over many updates: resident and peak memory, tokens per CPU second.

    python benchmarks/cpu_memory.py --model FOLDER [--updates 12] [--as-before]

seqkd in micro-batches of up to 2,048 tokens, 8 sequences of 250 to 900 tokens an update, so that nearly every pass has
a shape of its own. `--as-before` leaves oneDNN's kernels unbounded and what was freed where it is.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from cpu_bf16 import ids, model_of
from rollout import PlainCodec

from dgpo_cli.commands.common.few_kernels import keep_few_kernels
from dgpo_cli.core.host_memory import give_back
from dgpo_cli.core.machine import GIB
from dgpo_cli.models.half import compute_in_half
from dgpo_cli.objectives import registry
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.learner import Learner, Optimizer
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.step import optimizer_step


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name)) / GIB


def samples(number: int, vocabulary: int, chance: random.Random) -> list[Sample]:
    made = []
    for place in range(8):
        length = chance.randint(250, 900)
        written = torch.zeros(length, dtype=torch.bool)
        written[-150:] = True
        made.append(Sample(ids(length, 8 * number + place, vocabulary), written, by_student=False))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--as-before", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.as_before:
        keep_few_kernels()
    model = model_of(asked.model)
    compute_in_half(model)
    codec = PlainCodec(model.config.vocab_size)
    optimizer = Optimizer(model, OptimizerSettings(1e-5), asked.updates)
    learner = Learner(
        registry.create("seqkd", {}), codec, model, optimizer, micro_batch_tokens=2048, chunk_tokens=256
    )  # fmt: skip
    chance, seconds, tokens = random.Random(0), 0.0, 0
    for number in range(asked.updates):
        batch = samples(number, codec.vocabulary_size, chance)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        started = time.process_time()
        optimizer_step(learner, batch)
        if not asked.as_before:
            give_back()
        seconds += time.process_time() - started
        tokens += sum(sample.length for sample in batch)
        print(
            f"update {number + 1}: peak {resident('VmHWM'):.2f} GiB, then {resident('VmRSS'):.2f}; "
            f"{tokens / seconds:.0f} tokens per CPU second",
            flush=True,
        )


if __name__ == "__main__":
    main()
