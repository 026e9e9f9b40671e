"""An 8-bit teacher beside the same one in 16 bit: `python benchmarks/teacher_8bit.py [--model qwen-0.5b]`.

Scores sequences of one length by both, in turns, and prints as JSON, by batch size: tokens per second of each, the mean
KL(16 bit || 8 bit) per token in nats, the largest one, and the share of tokens whose most likely token differs. Weights
are random with the true configuration, so the error says how the arithmetic differs, not what a trained model would
lose; `--model FOLDER` scores a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from forced import TINY, model_of
from machine import about
from torch import Tensor

from dgpo_cli.models.eight_bit import count_eight_bit, quantization
from dgpo_cli.models.lm_head import hidden_states, project
from dgpo_cli.models.packed import Packed
from dgpo_cli.models.shapes import SHAPES


def load(name: str, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module]:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as made:
        folder = name
        if name in SHAPES or name in TINY:
            folder = made
            model_of(name, device, torch.bfloat16, 420).save_pretrained(folder)
        elif not Path(name).is_dir():
            raise SystemExit(f"{name} is neither a folder nor one of {', '.join([*SHAPES, *TINY])}")
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
        small = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=quantization(), device_map={"": str(device)}
        ).eval()
    assert count_eight_bit(small), "nothing was loaded in 8 bit"
    return plain, small


@torch.no_grad()
def scored(model: torch.nn.Module, ids: Tensor) -> tuple[Tensor, float]:
    """Hidden states and seconds, the vocabulary's product included."""
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    hidden = hidden_states(model, Packed.of(list(ids), ids.device))
    for rows in hidden.split(1024):
        project(model, rows, model.config.vocab_size)
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return hidden, time.perf_counter() - started


@torch.no_grad()
def errors(plain: torch.nn.Module, small: torch.nn.Module, first: Tensor, second: Tensor) -> dict[str, float]:
    divergences, parted = [], 0
    for a, b in zip(first.split(256), second.split(256), strict=True):
        p = project(plain, a, plain.config.vocab_size).log_softmax(-1)
        q = project(small, b, plain.config.vocab_size).log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        parted += int((p.argmax(-1) != q.argmax(-1)).sum())
    every = torch.cat(divergences)
    return {
        "kl_mean": float(every.mean()), "kl_max": float(every.max()), "other_first_choice": parted / len(every)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen-0.5b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128, help="of a sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if find_spec("bitsandbytes") is None:
        sys.exit("bitsandbytes is not installed: pip install bitsandbytes")
    plain, small = load(asked.model, device)
    rows = []
    for batch in asked.batches:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, plain.config.vocab_size, (batch, asked.tokens), generator=generator).to(device)
        seconds: dict[str, list[float]] = {"16 bit": [], "8 bit": []}
        for _ in range(asked.rounds):
            first, taken = scored(plain, ids)
            seconds["16 bit"].append(taken)
            second, taken = scored(small, ids)
            seconds["8 bit"].append(taken)
        speed = {name: round(ids.numel() / statistics.median(all_), 1) for name, all_ in seconds.items()}
        rows.append({"batch": batch, "tokens_per_s": speed} | errors(plain, small, first, second))
        print(json.dumps(rows[-1]), flush=True)
    memory = {
        name: sum(t.numel() * t.element_size() for t in (*m.parameters(), *m.buffers()))
        for name, m in (("16 bit", plain), ("8 bit", small))
    }
    told = {"model": asked.model} | about(device) | {"weight_bytes": memory, "rows": rows}
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
