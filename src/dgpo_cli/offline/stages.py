"""The stages of a path over the offline world: world, index, teacher, trajectories, training runs, evaluations.

Every stage is what the command of its name runs. A stage that is done is not done again; a stage that was interrupted
goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from dgpo_cli.core.config import apply_options
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.run_metrics import measured, read_metrics
from dgpo_cli.evaluation.summary import Report
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.devices import training_device
from dgpo_cli.models.load import load_tokenizer, save_model
from dgpo_cli.models.sources import ModelSource
from dgpo_cli.offline.demonstrations import write_demonstrations, write_reading_exercises
from dgpo_cli.offline.project import Project, read_row
from dgpo_cli.offline.world.demonstrator import Demonstrator, Fault
from dgpo_cli.offline.world.files import write_world
from dgpo_cli.offline.world.sizes import STUDENT, TEACHER, ModelSize, qwen2_config
from dgpo_cli.offline.world.world import World, build_world
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.rl import run_rl
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.teacher.distill_data import run_distill_data
from dgpo_cli.training.teacher.settings import DistillDataSettings


@dataclass(frozen=True, slots=True)
class Row:
    """One model on the held-out test questions; shares from 0 to 1, the interval of 95 %."""

    em: float
    em_interval: tuple[float, float]
    em_by_hops: dict[str, float]
    questions: int
    searches: float
    right: str  # one character per question in their order: 1 where the answer was right

    @classmethod
    def of(cls, report: Report) -> Row:
        """The row of an evaluation."""
        overall = report.overall
        return cls(
            em=overall.em,
            em_interval=(overall.em_interval.low, overall.em_interval.high),
            em_by_hops={str(hops): summary.em for hops, summary in report.by_hops.items()},
            questions=overall.n,
            searches=overall.searches,
            right="".join(str(int(outcome.em)) for outcome in report.outcomes),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """A row trained with other settings, for a search of the best ones."""

    row: str
    changes: Mapping[str, float]  # the learning rate `lr`, and settings of the objective
    validation_em: float  # the best

    def to_json(self) -> dict[str, str | float]:
        return {"row": self.row, **self.changes, "validation_em": self.validation_em}


class Stages(Project):
    """`settings` are a recipe with the tables that the stages are named after."""

    bench = "tinyworld"

    def start(self) -> tuple[Path, Path, Path]:
        """Student before anything is distilled, teacher, and the teacher's right trajectories."""
        if training_device(self.device).type == "cpu":
            # One thread: tiny models gain nothing from a second one, lose much where the other core is busy, and give
            # the same figures on any number of cores.
            torch.set_num_threads(1)
        world = self._world()
        teacher = self._teacher(world)
        trajectories = self._distill_data(teacher)
        return self._reader(world), teacher, trajectories

    def _world(self) -> World:
        world = build_world(self.seed)
        made = self.made_world()
        digest = config_digest("world", {"seed": self.seed, "passages": [p.contents for p in world.passages]})
        if made is not None and made.digest == digest:
            self._reuse("world and index")
            return world
        if made is not None:
            another = f"seed: {made.seed} there, {self.seed} here"
            why = "another version of dgpo made it" if made.seed == self.seed else another
            self._replace(self.world_folder, True, why)
            self.forget()
        self._say(f"world: {len(world.passages):,} passages, questions about {', '.join(world.questions)}")
        write_world(world, self.world_folder)
        build_index(self.world_folder / "corpus.jsonl", self.index_folder, overwrite=True)
        write_atomic(self.world_folder / "world.json", json.dumps({"digest": digest, "seed": self.seed}))
        return world

    def _initial_model(self, name: str, size: ModelSize) -> Path:
        """A model with random weights, saved like any other so that every stage loads models by name."""
        folder = self.folder / "models" / name
        if not (folder / "config.json").is_file():
            codec = self._codec()
            torch.manual_seed(self.seed)
            model = Qwen2ForCausalLM(qwen2_config(size, codec.vocabulary_size))
            save_model(folder, model, codec.tokenizer, TINYWORLD)
        return folder

    def _codec(self) -> Codec:
        tokenizer = load_tokenizer(ModelSource("tinyworld", str(self.world_folder / "tokenizer"), local=True))
        return Codec(tokenizer, TINYWORLD)

    def _teacher(self, world: World) -> Path:
        demonstrations = self.folder / "demonstrations.jsonl"
        if not demonstrations.is_file():
            self._say("demonstrations: scripted episodes with a systematic fault, for the teacher")
            write_demonstrations(
                Demonstrator(world, Fault(self.recipe.get("faults", Fault().by_kind)), self.seed),
                world.questions["demonstrations"][: self.recipe["world"]["demonstrations"]],
                demonstrations,
                codec=self._codec(),
                retriever=open_index(self.index_folder).retriever,
                settings=self.rollout,
                seed=self.seed,
            )
        start = self._initial_model("teacher", TEACHER)
        return self.kd("teacher", start, start, demonstrations, self.recipe["teacher"])

    def _reader(self, world: World) -> Path:
        """The student before anything is distilled: it reads, as a pretrained model does, and cannot search."""
        exercises = self.folder / "reading.jsonl"
        if not exercises.is_file():
            write_reading_exercises(
                world,
                world.questions["demonstrations"],
                exercises,
                codec=self._codec(),
                retriever=open_index(self.index_folder).retriever,
                settings=self.rollout,
                seed=self.seed,
            )
        start = self._initial_model("student", STUDENT)
        return self.kd("student", start, start, exercises, self.recipe["student"])

    def _distill_data(self, teacher: Path) -> Path:
        settings = DistillDataSettings(
            teacher=str(teacher),
            index=str(self.index_folder),
            questions=str(self.world_folder / "train.jsonl"),
            keep=self.recipe["distill-data"]["keep"],
            limit=self.recipe["distill-data"]["questions"],
            seed=self.seed,
            device=self.device,
            rollout=self.rollout,
        )

        def work(run: RunDir) -> None:
            questions = read_questions(Path(settings.questions))[: settings.limit]
            with self._bar("teacher's episodes", "episode") as progress:
                run_distill_data(settings, run, questions=questions, progress=progress)

        summary = self._stage("distill-data", "distill-data", asdict(settings), work)
        self._say(f"distill-data: {summary['kept']} of {summary['episodes']} episodes right and kept")
        return self.path("distill-data") / "trajectories.jsonl"

    def kd(self, stage: str, student: Path, teacher: Path, data: Path, options: Mapping[str, Any]) -> Path:
        """A run of `dgpo kd`; returns its folder, which is a model."""
        settings = apply_options(
            KDSettings,
            dict(options)
            | self._validation_of_kd()
            | {
                "student": str(student),
                "teacher": str(teacher),
                "trajectories": str(data),
                "index": str(self.index_folder),
                "seed": self.seed,
                "device": self.device,
                "rollout": asdict(self.rollout),
            },
        )

        def work(run: RunDir) -> None:
            with self._bar(stage, "step" if settings.seconds is None else "s") as progress:
                run_kd(settings, run, keep=1, progress=progress)

        self._stage(stage, "kd", asdict(settings), work)
        return self.path(stage)

    def _validation_of_kd(self) -> dict[str, str | int]:
        """The criterion for the best weights of a kd stage: EM on validation questions."""
        return {
            "eval_data": str(self.world_folder / "validation.jsonl"),
            "eval_limit": self.recipe["world"]["validation_questions"],
        }

    def rl(self, stage: str, student: Path, teacher: Path, options: Mapping[str, Any]) -> Path:
        """A run of `dgpo rl`; returns its folder, which is a model."""
        settings = apply_options(
            RLSettings,
            dict(options)
            | {
                "student": str(student),
                "teacher": str(teacher),
                "index": str(self.index_folder),
                "questions": str(self.world_folder / "train.jsonl"),
                "eval_data": str(self.world_folder / "validation.jsonl"),
                "seed": self.seed,
                "device": self.device,
                "rollout": asdict(self.rollout),
            },
        )

        def work(run: RunDir) -> None:
            with self._bar(stage, "step") as progress:
                run_rl(settings, run, keep=1, progress=progress)

        self._stage(stage, "rl", asdict(settings), work)
        return self.path(stage)

    def evaluate(self, name: str, model: Path) -> Row:
        """EM on held-out test questions, greedy."""
        count = self.recipe["world"]["test_questions"]
        found = self.measured(name, model, count, lambda report: asdict(Row.of(report)), wave=200)
        return read_row(Row, found, str(self.path(f"eval-{name}")))

    def validation_curve(self, stage: str) -> list[tuple[float, float]]:
        """Validation EM over training seconds."""
        points, seconds = [], 0.0
        for row in read_metrics(self.path(stage)):
            known = measured(row, "seconds")
            seconds = seconds if known is None else known
            if (em := measured(row, "eval_em")) is not None:
                points.append((seconds, em))
        return points
