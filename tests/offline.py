"""A very small offline world with models that nobody trained, for tests of whole commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import StopReason
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.offline.quickstart import Quickstart
from dgpo_cli.offline.world.files import write_world
from dgpo_cli.offline.world.sizes import ModelSize, qwen2_config
from dgpo_cli.offline.world.world import WorldSize, build_world
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index

ROLLOUT = RolloutSettings(
    top_k=2,
    max_turns=2,
    max_new_tokens=16,
    max_observation_tokens=96,
    max_prompt_tokens=64,
    max_tokens=200,
    wave=8,
)


def small_recipe() -> dict[str, Any]:
    """The quickstart's recipe with everything made small: all stages in half a minute."""
    settings = Quickstart.default_recipe()
    settings["world"] |= {"test_questions": 30, "validation_questions": 10, "demonstrations": 80}
    settings["distill-data"] |= {"questions": 30, "keep": "all"}
    settings["teacher"] |= {"steps": 4, "eval_every": 2}
    settings["student"] |= {"steps": 2, "eval_every": 2}
    settings["kd"] |= {"steps": 4, "eval_every": 2}
    settings["rl"] |= {"steps": 2, "batch_size": 16, "eval_every": 1, "save_every": 1, "eval_limit": 10}
    settings["search"] = {"lr": [1e-3, 2e-3]}
    return settings


@dataclass(frozen=True)
class Offline:
    folder: Path
    index: Path
    teacher: Path
    student: Path

    def questions(self, split: str) -> Path:
        return self.folder / "world" / f"{split}.jsonl"

    @property
    def corpus(self) -> Path:
        return self.folder / "world" / "corpus.jsonl"


def make(folder: Path) -> Offline:
    offline = make_without_index(folder)
    build_index(offline.corpus, offline.index)
    return offline


def make_without_index(folder: Path) -> Offline:
    """Where no lexical search is installed."""
    world = build_world(0, WorldSize(demonstrations=20, train=30, validation=10, test=10))
    write_world(world, folder / "world")
    tokenizer = AutoTokenizer.from_pretrained(folder / "world" / "tokenizer")
    for seed, (name, hidden) in enumerate((("teacher", 32), ("student", 16))):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(qwen2_config(ModelSize(hidden, 2, 4), len(tokenizer)))
        save_model(folder / name, model, tokenizer, TINYWORLD)
    return Offline(folder, folder / "index", folder / "teacher", folder / "student")


def make_searcher(offline: Offline, folder: Path) -> Path:
    """The student, trained to write `<search>QUESTION</search>` first."""
    torch.manual_seed(0)
    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    codec, model = Codec(loaded.tokenizer, loaded.protocol), loaded.model.train()
    rows = []
    for question in read_questions(offline.questions("train")):
        prompt = codec.prompt_ids(question.text).ids
        rows.append((prompt, codec.tokenizer(f"<search>{question.text}</search>", add_special_tokens=False).input_ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(400):
        prompt, written = rows[step % len(rows)]
        ids = torch.tensor([[*prompt, *written]])
        labels = torch.tensor([[-100] * len(prompt) + list(written)])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(folder, model.eval(), loaded.tokenizer, loaded.protocol)
    return folder


def write_one_trajectory(offline: Offline, file: Path) -> Path:
    """A trajectory file of one answer without a search."""
    header = {"schema": "trajectories", "version": 1, "protocol": TINYWORLD.to_json()}
    question = read_questions(offline.questions("train"))[0]
    trajectory = Trajectory(question, (5, 6, 7), (False, False, True), None, (), StopReason.ANSWERED, "A")
    write_jsonl_atomic(file, [header, {"key": trajectory.key} | trajectory.to_json()])
    return file
