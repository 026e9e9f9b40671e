"""The update of one rl step beside TRL's: `python benchmarks/rl_step.py [--json FILE]`.

Gradient and AdamW step of a token-mean GRPO loss over the same episodes with given advantages; rollouts and rewards are
no part of it. On the CPU float32 and one thread; with `--device cuda` float32 weights under bf16 autocast, and
Qwen2.5-0.5B's size. dgpo: `optimizer_step` at its default budget. TRL: GRPOTrainer's `compute_loss` with its defaults,
micro-batches of 8 as its per_device_train_batch_size says. Both must come to the same gradient norm. Every run is a
process of its own; repetitions are interleaved, medians are told (`make bench-step`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

# (hidden, intermediate, layers, heads, key-value heads, vocabulary, episodes, prompt, shortest and longest, steps)
CASES = {
    "tinyworld": (64, 32, 2, 4, 4, 1_200, 64, 14, 30, 120, 3),
    "0.1B": (768, 2_048, 12, 12, 4, 32_000, 8, 32, 40, 160, 1),
    # Qwen2.5-0.5B, and episodes of the reference's length
    "0.5B": (896, 4_864, 24, 14, 2, 151_936, 16, 300, 1_800, 2_400, 3),
}
BY_DEVICE = {"cpu": ["tinyworld", "0.1B"], "cuda": ["0.5B"]}
MICRO = 8  # per_device_train_batch_size of TRL


def make(case: str, device: str):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, kv, vocabulary, *_ = CASES[case]
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(device)


def episodes(case: str) -> list[tuple[list[int], list[bool], float]]:
    """Token ids, which of them the model wrote (two in five, in runs), and an advantage."""
    *_, vocabulary, count, prompt, short, long, _ = CASES[case]
    rng = random.Random(0)
    made = []
    for i in range(count):
        length = rng.randint(short, long)
        written = [place >= prompt and (place // 12) % 5 < 2 for place in range(length)]
        written[-1] = True
        made.append(([rng.randrange(1, vocabulary) for _ in range(length)], written, 1.0 if i % 3 else -0.7))
    return made


def dgpo(case: str, device: str):
    import torch

    from dgpo_cli.objectives import registry
    from dgpo_cli.objectives.base import Signals
    from dgpo_cli.training.batch import Sample
    from dgpo_cli.training.learner import Learner, Optimizer
    from dgpo_cli.training.optimizer_settings import OptimizerSettings
    from dgpo_cli.training.signals import logprobs
    from dgpo_cli.training.step import optimizer_step

    class Codec:
        vocabulary_size = CASES[case][5]

    model = make(case, device).eval()
    learner = Learner(
        objective=registry.create("grpo", {"variant": "dapo", "kl_coef": 0.0, "entropy_coef": 0.0}),
        codec=Codec(),
        student=model,
        policy_optimizer=Optimizer(model, OptimizerSettings(1e-6), 100),
    )
    samples = []
    for ids, mask, advantage in episodes(case):
        written = torch.tensor(mask)
        signals = Signals(advantages=torch.where(written, advantage, 0.0))
        samples.append(Sample(torch.tensor(ids), written, by_student=True, signals=signals))
    rows = logprobs(learner, model, samples)
    samples = [
        replace(s, signals=replace(s.signals, behavior_logprobs=row)) for s, row in zip(samples, rows, strict=True)
    ]
    return lambda: optimizer_step(learner, samples)["policy_grad_norm"]


def trl(case: str, device: str):
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<pad>", pad_token="<pad>")
    count, prompt = CASES[case][6:8]
    model = make(case, device)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=count // MICRO,
            learning_rate=1e-6,
            weight_decay=0.01,
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            report_to=[],
            gradient_checkpointing=False,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * count}),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = count // MICRO
    made = episodes(case)
    written = torch.tensor(float(sum(sum(w) for _, w, _ in made)), device=device)
    micro = []
    for first in range(0, count, MICRO):
        part = made[first : first + MICRO]
        width = max(len(ids) for ids, _, _ in part) - prompt
        rows = lambda values, width=width: torch.tensor([list(v) + [0] * (width - len(v)) for v in values])  # noqa: E731
        inputs = {
            "prompt_ids": torch.tensor([ids[:prompt] for ids, _, _ in part]),
            "prompt_mask": torch.ones(len(part), prompt, dtype=torch.long),
            "completion_ids": rows([ids[prompt:] for ids, _, _ in part]),
            "completion_mask": rows([[1] * (len(ids) - prompt) for ids, _, _ in part]),
            "tool_mask": rows([[int(w) for w in written[prompt:]] for _, written, _ in part]),
            "advantages": torch.tensor([advantage for _, _, advantage in part]),
            "num_items_in_batch": written,
        }
        micro.append({name: tensor.to(device) for name, tensor in inputs.items()})

    def run() -> float:
        model.train()
        for inputs in micro:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return norm

    return run


def measure(name: str, case: str, device: str) -> dict:
    import torch
    from machine import Peak, synchronize

    torch.set_num_threads(1)
    try:
        run = {"dgpo": dgpo, "trl": trl}[name](case, device)
    except ImportError as error:  # a peer that is not installed
        return {"error": str(error)}
    norm = run()  # not counted: libraries and moments set up
    rows, where = [], torch.device(device)
    peak = Peak(where)
    for _ in range(CASES[case][-1]):
        synchronize(where)
        started, cpu = time.perf_counter(), time.process_time()
        run()
        synchronize(where)
        rows.append((time.perf_counter() - started, time.process_time() - cpu))
    return {
        "seconds": statistics.median(r[0] for r in rows),
        "cpu_seconds": statistics.median(r[1] for r in rows),
        "grad_norm": norm,
        "peak_bytes": max(peak.bytes().values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", choices=BY_DEVICE, default="cpu")
    parser.add_argument("--cases", nargs="*", choices=CASES)
    parser.add_argument("--way", action="append", default=[], metavar="NAME=VALUE", help="a switch of models/ways.py")
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        from machine import use_way

        for way in options.way:
            use_way(way)
        print(json.dumps(measure(*options.one, options.device)))
        return
    cases = options.cases or BY_DEVICE[options.device]
    runs: dict[str, dict[str, list[dict]]] = {case: {"dgpo": [], "trl": []} for case in cases}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for case, of_case in runs.items():
        for _ in range(options.repetitions):
            for name, rows in of_case.items():
                if rows and "error" in rows[0]:
                    continue
                command = [sys.executable, __file__, "--one", name, case, "--device", options.device]
                command += [f"--way={way}" for way in options.way]
                ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                lost = {"error": (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]}
                rows.append(lost if ended.returncode else json.loads(ended.stdout.splitlines()[-1]))
                print(case, name, rows[-1], file=sys.stderr)
    report(runs, options)


def report(runs: dict[str, dict[str, list[dict]]], options: argparse.Namespace) -> None:
    import torch
    from machine import about

    clock = "seconds" if options.device == "cuda" else "cpu_seconds"
    if options.json is not None:
        made = about(torch.device(options.device)) | {"clock": clock, "runs": runs}
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    print(f"| model | dgpo, {clock} | TRL, {clock} | times | memory | gradient norms |\n|---|--:|--:|--:|---|---|")
    for case, of_case in runs.items():
        told = {name: medians(rows, clock) for name, rows in of_case.items()}
        times = " "
        if all("error" not in rows[0] for rows in of_case.values()):
            dgpo, trl = (statistics.median(row[clock] for row in of_case[name]) for name in ("dgpo", "trl"))
            times = f"{trl / dgpo:.2f}"
        cells = [told[name][0] for name in of_case] + [times]
        cells += [", ".join(told[name][place] for name in of_case) for place in (1, 2)]
        print(f"| {case} | {' | '.join(cells)} |")
    sys.exit(1 if any("error" in of_case["dgpo"][0] for of_case in runs.values()) else 0)


def medians(rows: list[dict], clock: str) -> tuple[str, str, str]:
    """Seconds, memory and gradient norm of one implementation, as told."""
    if "error" in rows[0]:
        return f"not run: {rows[0]['error']}", "-", "-"
    seconds, peak = (statistics.median(row[key] for row in rows) for key in (clock, "peak_bytes"))
    return f"{seconds:.3f}", f"{peak / 1e9:.2f} GB", f"{rows[0]['grad_norm']:.6f}"


if __name__ == "__main__":
    main()
