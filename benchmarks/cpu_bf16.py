"""bf16 on a CPU beside float32 and plain transformers: CPU seconds of one core, rounds of the ways interleaved.

    python benchmarks/cpu_bf16.py [--model FOLDER] [--rounds 3] [--json FILE]

Work at batch 8: prefill of 250 tokens a row, decoding of 64 more, a whole turn (both) beside `generate`, and training
(seqkd over sequences of 443 tokens, 103 of them written). Without a folder the model has SmolLM2-135M's sizes and
random weights, which take as long. "plain order" is bf16 without models/reordered.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import about
from rollout import PlainCodec
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process import weights
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.models.half import compute_in_half, processor_has_bf16
from dgpo_cli.models.reordered import reorder
from dgpo_cli.objectives import registry
from dgpo_cli.training.batch import Sample, pack
from dgpo_cli.training.learner import Learner, Optimizer
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.step import accumulate

ROWS, PROMPT, NEW = 8, 250, 64
SEQUENCES, LENGTH, WRITTEN = 3, 443, 103
Ways = dict[str, Callable[[], float]]  # each returns CPU seconds


def model_of(folder: Path | None) -> PreTrainedModel:
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ids(count: int, seed: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(1, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def turn(model: PreTrainedModel, taken: dict[str, list[float]], *, plain_order: bool = False) -> float:
    """Seconds of a turn of all rows; adds those of its two parts."""
    vocabulary = model.config.vocab_size
    with patch.object(weights, "can_reorder", lambda *_: False) if plain_order else nullcontext():
        engine = InProcessEngine(model, PlainCodec(vocabulary), slots=ROWS, capacity=1024)
    for row in range(ROWS):
        engine.open(ids(PROMPT, row, vocabulary).tolist(), Sampling(0.0, NEW, (), key=str(row)))
    prefill = cpu_seconds(engine.step)
    written = ROWS

    def rest() -> None:
        nonlocal written
        while events := engine.step():
            written += len(events)

    decode = cpu_seconds(rest)
    assert written == ROWS * NEW, written
    taken.setdefault("prefill", []).append(prefill)
    taken.setdefault("decode", []).append(decode)
    return prefill + decode


def generate(model: PreTrainedModel) -> float:
    prompts = torch.stack([ids(PROMPT, row, model.config.vocab_size) for row in range(ROWS)])
    config = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    def work() -> None:
        with torch.no_grad():
            model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)

    return cpu_seconds(work)


def ours(model: PreTrainedModel) -> float:
    """Forward and backward of our training step over the sequences; no update."""
    codec, samples = PlainCodec(model.config.vocab_size), []
    for number in range(SEQUENCES):
        written = torch.zeros(LENGTH, dtype=torch.bool)
        written[-WRITTEN:] = True
        samples.append(Sample(ids(LENGTH, number, codec.vocabulary_size), written, by_student=False))
    learner = Learner(registry.create("seqkd", {}), codec, model, Optimizer(model, OptimizerSettings(1e-4), 9))
    taken = cpu_seconds(lambda: accumulate(learner, pack(samples, learner.device), float(SEQUENCES * WRITTEN)))
    model.zero_grad()
    return taken


def plain_step(model: PreTrainedModel) -> float:
    """The same by transformers alone: labels where tokens were written."""
    inputs = torch.stack([ids(LENGTH, number, model.config.vocab_size) for number in range(SEQUENCES)])
    labels = inputs.clone()
    labels[:, :-WRITTEN] = -100
    taken = cpu_seconds(lambda: torch.autograd.backward(model(input_ids=inputs, labels=labels).loss))
    model.zero_grad()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not processor_has_bf16():
        sys.exit("this processor has neither AMX nor AVX512-BF16")
    torch.set_num_threads(1)
    full = model_of(asked.model)
    half = copy.deepcopy(full)
    compute_in_half(half)
    plain = copy.deepcopy(full).to(torch.bfloat16)
    read = copy.deepcopy(plain)  # as models are loaded that are only read
    reorder(read.get_decoder())
    names = ("float32", "bf16", "bf16, only read", "bf16, plain order", "bf16, only read, plain order")
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    ways: dict[str, Ways] = {
        "turn": {
            "transformers": lambda: generate(full),
            "float32": lambda: turn(full, parts["float32"]),
            "bf16": lambda: turn(half, parts["bf16"]),
            "bf16, plain order": lambda: turn(half, parts["bf16, plain order"], plain_order=True),
            "bf16, only read": lambda: turn(read, parts["bf16, only read"]),
            "bf16, only read, plain order": lambda: turn(plain, parts["bf16, only read, plain order"]),
        },
        "training": {
            "transformers": lambda: plain_step(full),
            "float32": lambda: ours(full),
            "bf16": lambda: ours(half),
        },
    }
    tokens = {"turn": ROWS * (PROMPT + NEW), "training": SEQUENCES * LENGTH, "prefill": ROWS * PROMPT,
              "decode": ROWS * (NEW - 1)}  # fmt: skip
    taken: dict[str, dict[str, list[float]]] = {work: {name: [] for name in of} for work, of in ways.items()}
    for number in range(asked.rounds + 1):  # the first is a warm-up
        for work, of in ways.items():
            for name, run in of.items():
                seconds = run()
                taken[work][name] += [seconds] if number else []
    for part in ("prefill", "decode"):
        taken[part] = {name: of[part][1:] for name, of in parts.items()}
    rows = [
        {"work": work, "way": name, "cpu_s": round(statistics.median(seconds), 3),
         "tokens_per_cpu_s": round(tokens[work] / statistics.median(seconds), 1)}
        for work, of in taken.items() for name, seconds in of.items()
    ]  # fmt: skip
    told = {"model": str(asked.model or "SmolLM2-135M's sizes"), "rounds": asked.rounds, "threads": 1}
    told |= about(torch.device("cpu")) | {"rows": rows}
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
