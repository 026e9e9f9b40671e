"""Estimated beside measured peak memory of real steps: `python benchmarks/plan_memory.py [NAME ...] [--json]`.

Every configuration runs in a process of its own, on the CPU in float32, with random weights: one warm-up step, then
the highest resident memory (VmHWM, reset before) of the second, minus what the process held before any model was made.
Linux only. glibc is told to give freed blocks back to the system at once, so that resident means allocated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# name: (kind, student, reader, sequences, length, share of trained tokens, chunk, checkpointing)
# Shapes: hidden, intermediate, layers, heads, key-value heads, vocabulary.
CASES: dict[str, tuple] = {
    "kd small": ("kd", (256, 1024, 8, 4, 2, 32_000), (512, 2048, 8, 8, 2, 32_000), 4, 512, 0.5, 256, False),
    "kd wide vocabulary": ("kd", (256, 1024, 6, 4, 2, 151_936), (384, 1536, 6, 6, 2, 151_936), 4, 256, 0.5, 256, False),
    "kd long": ("kd", (512, 2048, 8, 8, 2, 32_000), (512, 2048, 8, 8, 2, 32_000), 2, 1024, 0.25, 512, False),
    "kd checkpointed": ("kd", (512, 2048, 8, 8, 2, 64_000), (512, 2048, 4, 8, 2, 64_000), 2, 512, 0.5, 256, True),
    "seqkd 896": ("seqkd", (896, 4864, 4, 14, 2, 64_000), None, 2, 256, 0.5, 256, False),
    "rl k1": ("dgpo", (384, 1536, 6, 6, 2, 64_000), (512, 2048, 4, 8, 2, 64_000), 2, 384, 0.5, 256, False),
    "rl full KL": ("full", (256, 1024, 8, 4, 2, 64_000), (512, 2048, 4, 8, 2, 64_000), 2, 512, 0.5, 256, False),
    "ppo wide": ("ppo", (256, 1024, 6, 4, 2, 151_936), None, 2, 256, 0.5, 128, False),
    "rl checkpointed": ("dgpo", (512, 2048, 8, 8, 2, 32_000), (512, 2048, 4, 8, 2, 32_000), 2, 512, 0.5, 256, True),
}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def job_of(case: tuple):
    from dgpo_cli.models.shapes import Shape
    from dgpo_cli.training.sizes.memory import Job

    kind, student, reader, sequences, length, share, chunk, checkpointing = case
    rl = kind in ("dgpo", "full", "ppo")
    tokens = sequences * length
    return Job(
        student=Shape(*student, tied=True, qkv_bias=True),
        reader=None if reader is None else Shape(*reader, tied=True, qkv_bias=True),
        reader_8bit=False,
        distribution=kind in ("kd", "full"),
        rl=rl,
        reference=kind == "ppo",
        tokens=tokens,
        trained=int(share * tokens),
        chunk=chunk,
        slots=0,
        capacity=length,
        checkpointing=checkpointing,
        accelerated=False,
    )


def measure(name: str) -> dict[str, float]:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from dgpo_cli.core.trajectory import Trajectory
    from dgpo_cli.core.types import Question, Score, StopReason
    from dgpo_cli.models.critic import Critic
    from dgpo_cli.objectives import registry
    from dgpo_cli.training import credit, step
    from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing
    from dgpo_cli.training.optimizer_settings import OptimizerSettings

    torch.set_num_threads(1)
    case = CASES[name]
    kind, student_shape, reader_shape, sequences, length, share, chunk, checkpointing = case
    torch.nn.Linear(64, 64)(torch.randn(64, 64)).sum().backward()  # libraries set up

    def make(shape):
        hidden, inner, layers, heads, kv, vocabulary = shape
        config = Qwen2Config(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=True,
        )  # fmt: skip
        return Qwen2ForCausalLM(config).eval()

    class Codec:  # what a step asks of one
        vocabulary_size, pad_id = student_shape[-1], 0

    warm = make((64, 64, 1, 2, 2, 100))
    torch.optim.AdamW(warm.parameters()).step()
    del warm
    before = resident("VmRSS")
    student = make(student_shape)
    options = {"kl_form": "full-loss", "kl_coef": 0.1} if kind == "full" else {}
    method = "dgpo" if kind == "full" else kind
    learner = Learner(
        objective=registry.create(method, options),
        codec=Codec(),
        student=student,
        policy_optimizer=Optimizer(student, OptimizerSettings(1e-5), 10),
        teacher=None if reader_shape is None else make(reader_shape),
        micro_batch_tokens=sequences * length,
        chunk_tokens=chunk,
    )
    if method in ("dgpo", "ppo"):
        learner.critic = Critic(make(student_shape), seed=0)
        learner.value_optimizer = Optimizer(learner.critic, OptimizerSettings(1e-5), 10)
    if method == "ppo":
        learner.reference = make(student_shape)
    if checkpointing:
        enable_gradient_checkpointing(student)
        if learner.critic is not None:
            enable_gradient_checkpointing(learner.critic.backbone)
    first = length - int(share * length)
    written = tuple(place >= first for place in range(length))
    data = [
        Trajectory(
            question=Question(str(i), "?", ("x",), "set"),
            token_ids=tuple((7 * i + 13 * t) % student_shape[-1] for t in range(length)),
            written=written,
            logprobs=None,
            searches=(),
            stop=StopReason.ANSWERED,
            answer="y",
            score=Score(0.0, False, {"em": 0.0}),
        )
        for i in range(2 * sequences)
    ]

    def run() -> None:
        samples = (
            credit.student_samples(learner, data)[0] if method in ("dgpo", "ppo") else credit.teacher_samples(data)
        )
        step.optimizer_step(learner, samples)

    run()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return {"measured": resident("VmHWM") - before}


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--one":
        print(json.dumps(measure(sys.argv[2])))
        return
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    names = [name for name in sys.argv[1:] if name != "--json"] or list(CASES)
    rows = [_row(name, environment) for name in names]
    if "--json" in sys.argv:
        print(json.dumps(rows))
        return
    print("| configuration | estimate | measured | difference | largest parts |\n|---|---|---|---|---|")
    for row in rows:
        largest = sorted(row["parts"].items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in largest)
        print(
            f"| {row['name']} | {row['estimate'] / 1e9:.2f} GB | {row['measured'] / 1e9:.2f} GB "
            f"| {100 * (row['estimate'] / row['measured'] - 1):+.1f} % | {shown} |"
        )


def _row(name: str, environment: dict[str, str]) -> dict:
    from dgpo_cli.training.sizes.memory import by_part

    ended = subprocess.run(
        [sys.executable, __file__, "--one", name], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(ended.stderr)
    parts = by_part(job_of(CASES[name]))
    measured = json.loads(ended.stdout)["measured"]
    return {"name": name, "estimate": sum(parts.values()), "measured": measured, "parts": parts}


if __name__ == "__main__":
    main()
