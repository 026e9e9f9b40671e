"""One kd step from hidden states to gradients beside its peers: `python benchmarks/kd_step.py [--json FILE]`.

Forward KL plus cross-entropy of N tokens through heads of V = 151,936 and H = 896: time and highest memory above what
inputs and weights take, the gradient of the output layer included. On the CPU N = 2,048, float32, resident memory
(Linux); with `--device cuda` N = 8,192, float32 weights under bf16 autocast for all of them, allocated memory.
Every run is a process of its own; one for memory, then interleaved repetitions for time, whose medians are told. Peers:
plain logits, the loss of TRL's DistillationTrainer (forward KL alone: it has no cross-entropy), Liger's chunked JSD
loss, also compiled: that needs a C++ compiler and Python's headers, and its first step, which compiles, is not counted.
An interpreter that has trl and liger-kernel beside this package runs all of them (`make bench-step`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

TOKENS = {"cpu": 2_048, "cuda": 8_192}  # N
V, H = 151_936, 896
VARIANTS = ("dgpo", "naive", "trl", "liger", "liger compiled", "liger triton")


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def inputs(n: int, v: int, device: str):
    """Hidden states and heads of student and teacher, and the written tokens."""
    import torch

    torch.manual_seed(0)
    torch.set_default_device(device)
    hidden, teacher_hidden = torch.randn(n, H), torch.randn(n, H)
    weight, teacher_weight = torch.randn(v, H).mul_(0.05), torch.randn(v, H).mul_(0.05)
    return hidden, weight, teacher_hidden, teacher_weight, torch.randint(v, (n,))


def prepare(name: str, n: int, v: int, chunk: int | None, device: str):
    """A function that makes one step and returns (loss, gradient of hidden states, gradient of the head)."""
    import torch
    from torch.nn import functional

    hidden, weight, teacher_hidden, teacher_weight, labels = inputs(n, v, device)
    if name == "dgpo":
        return prepare_dgpo(hidden, weight, teacher_hidden, teacher_weight, labels, chunk)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()

    def naive():
        student, teacher = functional.linear(hidden, weight), functional.linear(teacher_hidden, teacher_weight)
        log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
        kl = functional.kl_div(log_s, log_t, reduction="sum", log_target=True)
        return (kl + functional.nll_loss(log_s, labels, reduction="sum")) / n

    def trl():
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        mask = torch.ones(1, n)
        return _chunked_divergence_loss(hidden[None], teacher_hidden[None], weight, teacher_weight, mask, 0.0)[0]

    def liger(compiled: bool):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled)
        return loss(hidden, weight, teacher_hidden, teacher_weight, labels)

    def liger_triton():
        from liger_kernel.transformers import LigerFusedLinearJSD

        return LigerFusedLinearJSD(jsd_beta=0.0)(hidden, weight, teacher_hidden, teacher_weight, labels)

    loss_of = {"naive": naive, "trl": trl, "liger": lambda: liger(False), "liger compiled": lambda: liger(True)}
    loss_of["liger triton"] = liger_triton

    def run():
        # What a trainer in bf16 does; the CPU stays in float32. dgpo's own pass does it by itself.
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of[name]()
        loss.backward()
        return float(loss.detach()), hidden.grad, weight.grad

    return run


def prepare_dgpo(hidden, weight, teacher_hidden, teacher_weight, labels, chunk):
    import torch
    from torch import nn

    from dgpo_cli.objectives import registry
    from dgpo_cli.objectives.base import TrainedTokens
    from dgpo_cli.training.learner import Learner
    from dgpo_cli.training.step import vocabulary_pass

    class Model(nn.Module):  # what the vocabulary's pass asks of a model
        def __init__(self, w, trained: bool) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1, bias=False)
            self.head.weight = nn.Parameter(w, requires_grad=trained)

        def get_output_embeddings(self):
            return self.head

    class Codec:
        vocabulary_size = len(weight)

    student = Model(weight, True)
    learner = Learner(
        objective=registry.create("kd", {}),
        codec=Codec(),
        student=student,
        policy_optimizer=None,
        teacher=Model(teacher_weight, False),
        **({} if chunk is None else {"chunk_tokens": chunk}),
    )
    n = len(hidden)
    tokens = TrainedTokens(
        token_ids=labels,
        weights=torch.ones(n),
        sequence_index=torch.zeros(n, dtype=torch.long),
        by_student=torch.zeros(n, dtype=torch.bool),
    )

    def run():
        sums, grad = vocabulary_pass(learner, hidden, teacher_hidden, tokens, float(n))
        return float(sums["policy_loss"]) / n, grad, student.head.weight.grad

    return run


def measure(name: str, chunk: int | None, n: int, device: str) -> dict:
    import torch

    torch.set_num_threads(1)
    gpu = device == "cuda"
    try:
        prepare(name, 8, 64, chunk, device)()  # libraries set up
        run = prepare(name, n, V, chunk, device)
        if name == "liger compiled" or gpu:
            run()  # compilation is not counted, nor is what a GPU does the first time
            run = prepare(name, n, V, chunk, device)
    except Exception as error:  # a peer that cannot run here says why
        if name == "dgpo":
            raise
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    if gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    cpu = time.process_time()
    try:
        loss, grad_hidden, grad_head = run()
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    if gpu:
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "extra_bytes": (torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")) - before,
        "loss": loss,
        "grad_hidden_norm": float(grad_hidden.norm()),
        "grad_head_norm": float(grad_head.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    parser.add_argument("--chunk", type=int, help="tokens whose distributions exist at once; the default of a Learner")
    parser.add_argument("--device", choices=TOKENS, default="cpu")
    parser.add_argument("--tokens", type=int, help="N; 2,048 on the CPU, 8,192 on a GPU")
    parser.add_argument("--one", choices=VARIANTS)
    options = parser.parse_args()
    tokens = options.tokens or TOKENS[options.device]
    if options.one:
        print(json.dumps(measure(options.one, options.chunk, tokens, options.device)))
        return
    plain = os.environ | {"OMP_NUM_THREADS": "1"}
    # Freed blocks go back to the system at once, so that resident means allocated. It takes time, which is not counted.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    chunk = [] if options.chunk is None else ["--chunk", str(options.chunk)]
    runs: dict[str, list[dict]] = {name: [] for name in options.only or VARIANTS}
    for number in range(options.repetitions + 1):  # the first for memory
        for name, rows in runs.items():
            if rows and "error" in rows[0]:
                continue
            where = ["--device", options.device, "--tokens", str(tokens)]
            command = [sys.executable, __file__, "--one", name, *chunk, *where]
            environment = plain if number else plain | given_back
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if name == "dgpo" and ended.returncode:
                sys.exit(ended.stderr)
            lost = {"error": (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]}
            rows.append(lost if ended.returncode else json.loads(ended.stdout.splitlines()[-1]))
            print(name, rows[-1], file=sys.stderr)
    report(runs, options.json, tokens, options.device)


def report(runs: dict[str, list[dict]], file: Path | None, tokens: int, device: str) -> None:
    import torch
    from machine import about

    medians = {
        name: {key: statistics.median(row[key] for row in rows[1:] or rows) for key in rows[0]}
        | {"extra_bytes": rows[0]["extra_bytes"]}
        for name, rows in runs.items()
        if "error" not in rows[0]
    }
    if file is not None:
        made = {"n": tokens, "v": V, "h": H, **about(torch.device(device)), "medians": medians, "runs": runs}
        file.write_text(json.dumps(made, indent=1) + "\n")
    print(
        "| implementation | CPU seconds | seconds | extra memory | loss | gradient norms |\n|---|--:|--:|--:|--:|---|"
    )
    for name, rows in runs.items():
        if name not in medians:
            print(f"| {name} | not run: {rows[0]['error']} | | | | |")
            continue
        m = medians[name]
        print(
            f"| {name} | {m['cpu_seconds']:.1f} | {m['seconds']:.1f} | {m['extra_bytes'] / 1e9:.2f} GB "
            f"| {m['loss']:.5f} | {m['grad_hidden_norm']:.6f}, {m['grad_head_norm']:.6f} |"
        )


if __name__ == "__main__":
    main()
