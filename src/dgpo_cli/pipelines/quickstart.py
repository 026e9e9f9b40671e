"""The whole path on the offline world: world, index, teacher, trajectories, cold start, RL, evaluation, one table.

Every stage is what the command of its name runs, with settings from `recipes/quickstart.toml`. A stage that is done is
not done again; a stage that was interrupted goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from dgpo_cli.core.config import apply_options
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.protocol import TINYWORLD
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_dir import RunDir, config_digest
from dgpo_cli.evaluate.run import evaluate
from dgpo_cli.evaluate.summary import Report
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import ModelSource, load_model, load_tokenizer, save_model
from dgpo_cli.pipelines.agents import Agent, rollout_settings
from dgpo_cli.pipelines.demonstrations import write_demonstrations, write_reading_exercises
from dgpo_cli.pipelines.distill_data import run_distill_data
from dgpo_cli.pipelines.kd import run_kd
from dgpo_cli.pipelines.rl import run_rl
from dgpo_cli.pipelines.settings import DistillDataSettings, KDSettings, RLSettings, RolloutOptions
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.tinyworld.demonstrations import Demonstrator, Fault
from dgpo_cli.tinyworld.files import write_world
from dgpo_cli.tinyworld.sizes import STUDENT, TEACHER, ModelSize, qwen2_config
from dgpo_cli.tinyworld.world import World, build_world
from dgpo_cli.train.devices import training_device

RL_ROWS = ("ppo", "dgpo_k1", "dgpo")
ROWS = ("student", "teacher", "kd", "kd_longer", "ppo", "dgpo_k1", "dgpo")
Say = Callable[[str], None]
Bar = Callable[[str, str], AbstractContextManager[Progress]]


@dataclass(frozen=True, slots=True)
class Row:
    """One model on the held-out test questions; shares from 0 to 1, the interval of 95 %."""

    em: float
    em_interval: tuple[float, float]
    em_by_hops: dict[str, float]
    questions: int
    searches: float

    @classmethod
    def of(cls, report: Report) -> Row:
        overall = report.overall
        return cls(
            em=overall.em,
            em_interval=(overall.em_interval.low, overall.em_interval.high),
            em_by_hops={str(hops): summary.em for hops, summary in report.by_hops.items()},
            questions=overall.n,
            searches=overall.searches,
        )


def recipe() -> dict[str, Any]:
    import tomllib

    text = resources.files("dgpo_cli.recipes").joinpath("quickstart.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


class Quickstart:
    """`folder` keeps everything that is made. `say` gets one line per stage, `bar` makes a progress bar.

    `settings` has the recipe's form and replaces it.
    """

    def __init__(
        self, folder: Path, *, seed: int, device: str, say: Say, bar: Bar, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.seed, self.device = folder, seed, device
        self._say, self._bar = say, bar
        self.recipe = recipe() if settings is None else dict(settings)
        self.rollout = apply_options(RolloutOptions, self.recipe["rollout"])
        self.world_folder, self.index_folder = folder / "world", folder / "index"

    def run(self) -> dict[str, Any]:
        """All stages; returns {"seconds", "em", "rows", "reused", "settings"}."""
        started = time.perf_counter()
        student, teacher, trajectories, cold = self._start()
        dgpo = self._rl("dgpo", cold, teacher)
        models = {
            "student": student,
            "teacher": teacher,
            "kd": cold,
            "ppo": self._rl("ppo", cold, teacher),
            "dgpo_k1": self._rl("dgpo_k1", cold, teacher),
            "dgpo": dgpo,
        }
        longer = self.recipe["kd"] | {
            "seconds": self._result("dgpo")["seconds"],
            "steps": 1_000_000,
            "schedule": "constant",
        }
        models["kd_longer"] = self._kd("kd_longer", cold, teacher, trajectories, longer)
        rows = {name: self._evaluate(name, models[name]) for name in ROWS}
        return {
            "seconds": time.perf_counter() - started,
            "em": {name: row.em for name, row in rows.items()},
            "rows": {name: asdict(row) for name, row in rows.items()},
            "reused": self.reused,
            "folder": str(self.folder),
            "models": {name: str(path) for name, path in models.items()},
        }

    def search(self) -> dict[str, Any]:
        """Every RL row over the recipe's grid of learning rates; best EM on validation questions."""
        _, teacher, _, cold = self._start()
        found = []
        for row in RL_ROWS:
            for lr in self.recipe["search"]["lr"]:
                stage = f"search/{row}-lr{lr:g}"
                self._rl(stage, cold, teacher, row, {"lr": lr})
                found.append({"row": row, "lr": lr, "validation_em": self._result(stage)["best"]})
        return {"grid": found, "folder": str(self.folder)}

    def _start(self) -> tuple[Path, Path, Path, Path]:
        """Untrained student, teacher, its trajectories, and the cold start that every RL row begins with."""
        if training_device(self.device).type == "cpu":
            # One thread: tiny models gain nothing from a second one, lose much where the other core is busy, and give
            # the same figures on any number of cores.
            torch.set_num_threads(1)
        self.reused: list[str] = []
        world = self._world()
        teacher = self._teacher(world)
        trajectories = self._distill_data(teacher)
        student = self._reader(world)
        return student, teacher, trajectories, self._kd("kd", student, teacher, trajectories, self.recipe["kd"])

    def path(self, stage: str) -> Path:
        return self.folder / "runs" / stage

    def _world(self) -> World:
        world = build_world(self.seed)
        stamp = self.world_folder / "world.json"
        digest = config_digest("world", {"seed": self.seed, "passages": [p.contents for p in world.passages]})
        if stamp.is_file() and json.loads(stamp.read_text())["digest"] == digest:
            self._reuse("world and index")
            return world
        self._say(f"world: {len(world.passages):,} passages, questions about {', '.join(world.questions)}")
        write_world(world, self.world_folder)
        build_index(self.world_folder / "corpus.jsonl", self.index_folder, overwrite=True)
        write_atomic(stamp, json.dumps({"digest": digest, "seed": self.seed}))
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
                Demonstrator(world, Fault(), self.seed),
                world.questions["demonstrations"][: self.recipe["world"]["demonstrations"]],
                demonstrations,
                codec=self._codec(),
                retriever=open_index(self.index_folder).retriever,
                settings=rollout_settings(self.rollout, self.seed),
            )
        start = self._initial_model("teacher", TEACHER)
        return self._kd("teacher", start, start, demonstrations, self.recipe["teacher"])

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
                settings=rollout_settings(self.rollout, self.seed),
            )
        start = self._initial_model("student", STUDENT)
        return self._kd("student", start, start, exercises, self.recipe["student"])

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

        def work(run: RunDir) -> Mapping[str, Any]:
            questions = read_questions(Path(settings.questions))[: settings.limit]
            with self._bar("teacher's episodes", "episode") as progress:
                return run_distill_data(settings, run, questions=questions, progress=progress)

        summary = self._stage("distill-data", "distill-data", asdict(settings), work)
        self._say(f"distill-data: {summary['kept']} of {summary['episodes']} episodes right and kept")
        return self.path("distill-data") / "trajectories.jsonl"

    def _kd(self, stage: str, student: Path, teacher: Path, data: Path, options: Mapping[str, Any]) -> Path:
        settings = apply_options(
            KDSettings,
            dict(options)
            | {
                "student": str(student),
                "teacher": str(teacher),
                "trajectories": str(data),
                "eval_index": str(self.index_folder),
                "eval_questions": str(self.world_folder / "validation.jsonl"),
                "eval_limit": self.recipe["world"]["validation_questions"],
                "seed": self.seed,
                "device": self.device,
                "rollout": asdict(self.rollout),
            },
        )

        def work(run: RunDir) -> Mapping[str, Any]:
            with self._bar(stage, "step" if settings.seconds is None else "s") as progress:
                return run_kd(settings, run, keep=1, progress=progress)

        self._stage(stage, "kd", asdict(settings), work)
        return self.path(stage)

    def _rl(
        self, stage: str, student: Path, teacher: Path, row: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> Path:
        row = row or stage
        options = self.recipe["rl"] | self.recipe[row] | dict(changes or {})
        settings = apply_options(
            RLSettings,
            options
            | {
                "method": "ppo" if row == "ppo" else "dgpo",
                "student": str(student),
                "teacher": str(teacher),
                "index": str(self.index_folder),
                "questions": str(self.world_folder / "train.jsonl"),
                "validation": str(self.world_folder / "validation.jsonl"),
                "seed": self.seed,
                "device": self.device,
                "rollout": asdict(self.rollout),
            },
        )

        def work(run: RunDir) -> Mapping[str, Any]:
            with self._bar(stage, "step") as progress:
                return run_rl(settings, run, keep=1, progress=progress)

        self._stage(stage, "rl", asdict(settings), work)
        return self.path(stage)

    def _stage(
        self, stage: str, command: str, config: Mapping[str, Any], work: Callable[[RunDir], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Do a stage unless its folder holds a finished run of the same settings."""
        path = self.path(stage)
        digest = config_digest(command, config)
        if (path / "run.json").is_file():
            record = json.loads((path / "run.json").read_text())
            if record["digest"] == digest and record["status"] == "finished":
                self._reuse(stage)
                return dict(record["result"])
        started = time.perf_counter()
        same = (path / "run.json").is_file() and json.loads((path / "run.json").read_text())["digest"] == digest
        with RunDir.open(command, config, out=path, fresh=not same) as run:
            result = work(run)
        best = f", best validation EM {result['best']:.1%}" if result.get("best") is not None else ""
        self._say(f"{stage}: {time.perf_counter() - started:.0f} s{best}")
        return result

    def _result(self, stage: str) -> Mapping[str, Any]:
        return dict(json.loads((self.path(stage) / "run.json").read_text())["result"])

    def _reuse(self, what: str) -> None:
        self.reused.append(what)
        self._say(f"{what}: done before, reused")

    def _evaluate(self, name: str, model: Path) -> Row:
        """EM on held-out test questions, greedy."""
        settings = replace(rollout_settings(self.rollout, self.seed), temperature=0.0, wave=200)
        config = {
            "model": str(model),
            "rollout": settings.to_json(),
            "questions": self.recipe["world"]["test_questions"],
        }
        config["weights"] = self._fingerprint(model)
        config["index"] = open_index(self.index_folder).digest

        def work(run: RunDir) -> Mapping[str, Any]:
            device = training_device(self.device)
            loaded = load_model(str(model), device=device)
            agent = Agent.of(
                loaded.model,
                Codec(loaded.tokenizer, loaded.protocol),
                open_index(self.index_folder).retriever,
                settings,
            )
            questions = read_questions(self.world_folder / "test.jsonl")[: config["questions"]]
            report = evaluate(questions, run_batch=agent.run, decode=agent.codec.decode, wave=settings.wave)
            row = asdict(Row.of(report))
            run.finish(row)
            return row

        return Row(**self._stage(f"eval-{name}", "eval", config, work))

    def _fingerprint(self, model: Path) -> str:
        import hashlib

        folder = model / "best" if (model / "best").is_dir() else model
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Validation EM over training seconds, by row."""
        result = {}
        for name in ("kd", "kd_longer", "ppo", "dgpo_k1", "dgpo"):
            points, seconds = [], 0.0
            for line in (self.path(name) / "metrics.jsonl").read_text().splitlines():
                row = json.loads(line)
                seconds = row.get("seconds", seconds)
                if "eval_em" in row:
                    points.append((seconds, row["eval_em"]))
            result[name] = points
        return result
