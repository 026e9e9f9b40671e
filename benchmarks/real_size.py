"""One step of each training command on models of the paper's true sizes with random weights: time and peak memory.

    python benchmarks/real_size.py kd | k1-reward | full-loss | teacher-3b     prints one JSON object

The tokenizer is a byte-level BPE trained here; teachers are loaded in 8 bit. `kd` trains in float32 as the command
does; in `rl` weights and moments are bf16 (the command's are float32), so that two trained models fit into 10 GB.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Question
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.eight_bit import count_eight_bit
from dgpo_cli.models.load import LoadedModel, load_model, save_model
from dgpo_cli.models.random_init import random_model
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.assemble import assemble
from dgpo_cli.training.kd import Trajectories
from dgpo_cli.training.rl import Questions
from dgpo_cli.training.run.lifecycle import TrainingResult
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.teacher.distill_data import distill_data
from dgpo_cli.training.teacher.trajectory_files import read_trajectories
from tiny import bpe_tokenizer

CPU = torch.device("cpu")
PROTOCOL = Protocol("real-size", "{question}\n<search>", "no action\n<search>", chat_template=False)
ROLLOUT = RolloutSettings(max_new_tokens=8, max_turns=1, max_observation_tokens=64, max_tokens=128, wave=2)
QUESTIONS = [Question(str(i), f"who built tower {i}?", (f"mason {i}",), "bench") for i in range(2)]


def saved(folder: Path, name: str, seed: int) -> Path:
    """A random model on disk, in bf16."""
    save_model(folder, random_model(name, device=CPU, dtype=torch.bfloat16, seed=seed), bpe_tokenizer(), PROTOCOL)
    return folder


def index(folder: Path) -> Any:
    corpus = [{"id": str(i), "title": f"Tower {i}", "text": f"Built by mason {i}."} for i in range(20)]
    write_jsonl_atomic(folder / "corpus.jsonl", corpus)
    build_index(folder / "corpus.jsonl", folder / "index")
    return open_index(folder / "index").retriever


def kd(folder: Path, student: LoadedModel, teacher: LoadedModel) -> TrainingResult:
    codec = Codec(teacher.tokenizer, PROTOCOL)
    agent = Agent.of(teacher.model, codec, index(folder), ROLLOUT)
    distill_data(agent, QUESTIONS, samples=1, keep="all", folder=folder, progress=None)
    settings = KDSettings(
        student="s", teacher="t", trajectories=str(folder), steps=1, batch_size=2, validation_share=0.0, lr=1e-4
    )
    with RunDir.open("kd", asdict(settings), out=folder / "run") as run:
        material = Trajectories.of(settings, read_trajectories(folder))
        return assemble(settings, OpenRun(run), material, student, teacher, None)


def rl(folder: Path, student: LoadedModel, teacher: LoadedModel, form: str) -> TrainingResult:
    settings = RLSettings(
        student="s",
        teacher="t",
        index="i",
        questions="q",
        objective={"kl_form": form, "kl_coef": 0.1},
        steps=1,
        batch_size=2,
        mini_batches=1,
        warmup_steps=0,
        lr=1e-3,
        rollout=ROLLOUT,
    )
    with RunDir.open("rl", asdict(settings), out=folder / "run") as run:
        material = Questions.of(settings, QUESTIONS, QUESTIONS[:1])
        return assemble(settings, OpenRun(run), material, student, teacher, index(folder))


def measure(stage: str, folder: Path) -> dict[str, Any]:
    name = "qwen-3b" if stage == "teacher-3b" else "qwen-0.5b"
    path = str(saved(folder / "teacher", name, 1))
    # A 3B model is made in bf16 first: what counts is what its 8-bit form needs, so the high-water mark says both.
    teacher = load_model(path, device=CPU, dtype=torch.bfloat16, eight_bit=True)
    result: dict[str, Any] = {
        "teacher_parameters": teacher.model.num_parameters(),
        "teacher_8bit_modules": count_eight_bit(teacher.model),
        "teacher_gb": sum(p.numel() * p.element_size() for p in teacher.model.parameters()) / 1e9,
    }
    if stage != "teacher-3b":
        kind = torch.float32 if stage == "kd" else torch.bfloat16
        student = load_model(str(saved(folder / "student", name, 0)), device=CPU, dtype=kind)
        before = student.model.get_input_embeddings().weight[:512].detach().clone()
        started = time.perf_counter()
        outcome = kd(folder, student, teacher) if stage == "kd" else rl(folder, student, teacher, stage)
        result["step_seconds"], result["seconds"] = outcome.seconds, time.perf_counter() - started
        result["moved"] = int((student.model.get_input_embeddings().weight[:512] != before).any(dim=1).sum())
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        result["metrics"] = {k: v for row in rows for k, v in row.items() if not k.startswith("seconds")}
        assert all(math.isfinite(value) for value in result["metrics"].values()), result
    with torch.no_grad():
        result["logits_finite"] = bool(teacher.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all())
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(sys.argv[1], Path(place)), indent=1))
