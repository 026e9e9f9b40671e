"""bf16 on a CPU beside float32 and plain transformers: CPU seconds of one core, the ways in turns.

    python benchmarks/cpu_bf16.py [--model FOLDER] [--rounds 3] [--json FILE]

Work at batch 8: prefill of 250 tokens a row, decoding of 64 more, a whole turn (both) beside `generate`, and training
(seqkd over sequences of 443 tokens, 103 of them written). Without a folder the model has SmolLM2-135M's sizes and
random weights, which take as long. "plain order" is bf16 without models/reordered.py. Rounds are interleaved, and
engines decode in turns of one step: on a shared machine the same step can take twice as long ten seconds later.
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
from functools import partial
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


def engine_of(model: PreTrainedModel, plain_order: bool) -> InProcessEngine:
    """An engine with all rows open."""
    vocabulary = model.config.vocab_size
    with patch.object(weights, "can_reorder", lambda *_: False) if plain_order else nullcontext():
        engine = InProcessEngine(model, PlainCodec(vocabulary), slots=ROWS, capacity=1024)
    for row in range(ROWS):
        engine.open(ids(PROMPT, row, vocabulary).tolist(), Sampling(0.0, NEW, (), key=str(row)))
    return engine


def step(engine: InProcessEngine) -> None:
    """One token of each row."""
    assert len(engine.step()) == ROWS


def turns(models: dict[str, PreTrainedModel]) -> dict[str, dict[str, float]]:
    """Seconds of a turn of all rows and of its parts, by part and name of the engine; of steps the median counts."""
    engines = {name: engine_of(model, "plain order" in name) for name, model in models.items()}
    prefill = {name: cpu_seconds(partial(step, engine)) for name, engine in engines.items()}
    steps = [{name: cpu_seconds(partial(step, engine)) for name, engine in engines.items()} for _ in range(NEW - 1)]
    decode = {name: statistics.median(taken[name] for taken in steps) * len(steps) for name in engines}
    return {"prefill": prefill, "decode": decode, "turn": {name: prefill[name] + decode[name] for name in engines}}


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
    models = {"float32": full, "bf16": half, "bf16, plain order": half, "bf16, only read": read,
              "bf16, only read, plain order": plain}  # fmt: skip
    training: Ways = {
        "transformers": lambda: plain_step(full),
        "float32": lambda: ours(full),
        "bf16": lambda: ours(half),
    }
    tokens = {"turn": ROWS * (PROMPT + NEW), "training": SEQUENCES * LENGTH, "prefill": ROWS * PROMPT,
              "decode": ROWS * (NEW - 1)}  # fmt: skip
    taken: dict[str, dict[str, list[float]]] = {work: {} for work in tokens}
    for number in range(asked.rounds + 1):  # the first is a warm-up
        measured = turns(models)
        measured["turn"]["transformers"] = generate(full)
        measured["training"] = {name: run() for name, run in training.items()}
        for work, of in measured.items() if number else ():
            for name, seconds in of.items():
                taken[work].setdefault(name, []).append(seconds)
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
