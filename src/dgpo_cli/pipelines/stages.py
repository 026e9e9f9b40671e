"""The stages of a path over the offline world: world, index, teacher, trajectories, training runs, evaluations.

Every stage is what the command of its name runs. A stage that is done is not done again; a stage that was interrupted
goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from dgpo_cli.core import folders, schema
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.locks import Lock, lock_inside
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.protocol import TINYWORLD
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_dir import RunDir, differing, measured, read_metrics, read_run
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.errors import BusyError, ConfigError
from dgpo_cli.evaluate.run import evaluate
from dgpo_cli.evaluate.summary import Report
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model, load_tokenizer, save_model
from dgpo_cli.models.sources import ModelSource
from dgpo_cli.pipelines.agents import Agent, rollout_settings
from dgpo_cli.pipelines.demonstrations import write_demonstrations, write_reading_exercises
from dgpo_cli.pipelines.distill_data import run_distill_data
from dgpo_cli.pipelines.identity import contents
from dgpo_cli.pipelines.kd import run_kd
from dgpo_cli.pipelines.rl import run_rl
from dgpo_cli.pipelines.settings import DistillDataSettings, KDSettings, RLSettings, RolloutOptions
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.reporting.training_line import best_validation
from dgpo_cli.retrieval.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.tinyworld.demonstrations import Demonstrator, Fault
from dgpo_cli.tinyworld.files import write_world
from dgpo_cli.tinyworld.sizes import STUDENT, TEACHER, ModelSize, qwen2_config
from dgpo_cli.tinyworld.world import World, build_world
from dgpo_cli.train.devices import training_device

_FOLDERS, _FILES = ("world", "index", "models", "runs"), ("demonstrations.jsonl", "reading.jsonl", "results.json")
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
    right: str  # one character per question in their order: 1 where the answer was right

    @classmethod
    def of(cls, report: Report) -> Row:
        overall = report.overall
        return cls(
            em=overall.em,
            em_interval=(overall.em_interval.low, overall.em_interval.high),
            em_by_hops={str(hops): summary.em for hops, summary in report.by_hops.items()},
            questions=overall.n,
            searches=overall.searches,
            right="".join(str(int(outcome.em)) for outcome in report.outcomes),
        )


_WORLD = schema.record({"digest": schema.text()}, {"seed": schema.maybe(schema.whole())})
_FINISHED = schema.record({"result": schema.map_of(schema.ANYTHING)})


class Stages:
    """`folder` keeps everything that is made. `say` gets one line per stage, `bar` makes a progress bar."""

    def __init__(
        self, folder: Path, *, seed: int, device: str, say: Say, bar: Bar, settings: Mapping[str, Any]
    ) -> None:
        self.folder, self.seed, self.device = folder, seed, str(training_device(device))
        self._say, self._bar = say, bar
        self.recipe = dict(settings)
        self.rollout = apply_options(RolloutOptions, self.recipe["rollout"])
        self.world_folder, self.index_folder = folder / "world", folder / "index"
        self.reused: list[str] = []
        self.may_replace: Callable[[str], bool] = lambda _: False  # asked once, before finished work is replaced
        self._allowed = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The folder for this process and those that it starts; what killed ones left unfinished in it is deleted."""
        with Lock.inside(self.folder, hint="wait for it, or give another --out"):
            for part in _FOLDERS:
                folders.settle(self.folder / part)
            for folder in (self.folder, self.world_folder):
                folders.sweep(folder)
            for left in list((self.folder / "runs").rglob(lock_inside(Path()).name)):
                with suppress(BusyError), Lock.inside(left.parent):
                    folders.sweep(left.parent)
            yield

    def forget(self) -> None:
        """Delete everything that was made; anything else in the folder stays."""
        for part in _FOLDERS:
            folders.remove(self.folder / part)
        for part in _FILES:
            (self.folder / part).unlink(missing_ok=True)

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

    def path(self, stage: str) -> Path:
        return self.folder / "runs" / stage

    def _world(self) -> World:
        world = build_world(self.seed)
        made = self.made_world()
        digest = config_digest("world", {"seed": self.seed, "passages": [p.contents for p in world.passages]})
        if made is not None and made["digest"] == digest:
            self._reuse("world and index")
            return world
        if made is not None:
            seed = made.get("seed")
            why = "another version of dgpo made it" if seed == self.seed else f"seed: {seed} there, {self.seed} here"
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
                settings=rollout_settings(self.rollout, self.seed),
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
                settings=rollout_settings(self.rollout, self.seed),
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

        def work(run: RunDir) -> Mapping[str, Any]:
            questions = read_questions(Path(settings.questions))[: settings.limit]
            with self._bar("teacher's episodes", "episode") as progress:
                return run_distill_data(settings, run, questions=questions, progress=progress)

        summary = self._stage("distill-data", "distill-data", asdict(settings), work)
        self._say(f"distill-data: {summary['kept']} of {summary['episodes']} episodes right and kept")
        return self.path("distill-data") / "trajectories.jsonl"

    def kd(self, stage: str, student: Path, teacher: Path, data: Path, options: Mapping[str, Any]) -> Path:
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

        def work(run: RunDir) -> Mapping[str, Any]:
            with self._bar(stage, "step" if settings.seconds is None else "s") as progress:
                return run_kd(settings, run, keep=1, progress=progress)

        self._stage(stage, "kd", asdict(settings), work)
        return self.path(stage)

    def _validation_of_kd(self) -> dict[str, Any]:
        """What decides which weights of a kd stage are the best: EM on validation questions."""
        return {
            "eval_questions": str(self.world_folder / "validation.jsonl"),
            "eval_limit": self.recipe["world"]["validation_questions"],
        }

    def rl(self, stage: str, student: Path, teacher: Path, options: Mapping[str, Any]) -> Path:
        settings = apply_options(
            RLSettings,
            dict(options)
            | {
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
        self,
        stage: str,
        command: str,
        config: Mapping[str, Any],
        work: Callable[[RunDir], Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """Do a stage unless its folder holds a finished run of the same settings on the same inputs.

        The settings only say where the inputs lie: what counts is what is in them. Raises ConfigError where finished
        work would have to be replaced and nobody allows it.
        """
        path = self.path(stage)
        seen = contents(config)
        record = read_run(path) if (path / "run.json").is_file() else {}
        same = record.get("digest") == config_digest(command, config, seen)
        if same and record["status"] == "finished":
            self._reuse(stage)
            return dict(record["result"])
        if record and not same:
            self._replace(path, record["status"] == "finished", differing(path, config, seen))
        started = time.perf_counter()
        with RunDir.open(command, config, out=path, fresh=not same, inputs=seen) as run:
            result = work(run)
            best = best_validation(result.get("best"), run.metrics())
        self._say(f"{stage}: {time.perf_counter() - started:.0f} s{best}")
        return result

    def _replace(self, path: Path, finished: bool, why: str) -> None:
        """Say that what is in `path` has to be made anew; of finished work only if that is allowed."""
        if finished and not self._allowed:
            self._allowed = self.may_replace(f"{path} is finished, and what is asked for now differs: {why}")
            if not self._allowed:
                raise ConfigError(
                    f"{path} is finished and would be replaced: {why}",
                    hint="give --replace to make it and what follows from it anew, or another --out",
                )
        self._say(f"{path.name}: made anew ({why})")

    def result(self, stage: str) -> Mapping[str, Any]:
        path = self.path(stage)
        record = schema.check(read_run(path), _FINISHED, f"{path / 'run.json'} is damaged", hint=f"delete {path}")
        return dict(record["result"])

    def made_world(self) -> dict[str, Any] | None:
        """What the world was made from; None where none is there."""
        stamp = self.world_folder / "world.json"
        if not stamp.is_file():
            return None
        made: dict[str, Any] = schema.read_record(stamp, _WORLD, hint=f"delete {stamp}")
        return made

    def _reuse(self, what: str) -> None:
        self.reused.append(what)
        self._say(f"{what}: done before, reused")

    def evaluate(self, name: str, model: Path) -> Row:
        """EM on held-out test questions, greedy."""
        settings = replace(rollout_settings(self.rollout, self.seed), temperature=0.0, wave=200)
        config = {
            "model": str(model),
            "rollout": settings.to_json(),
            "questions": self.recipe["world"]["test_questions"],
            "index": str(self.index_folder),
            "data": str(self.world_folder / "test.jsonl"),
        }

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
            report = evaluate(questions, run_batch=agent.finished, decode=agent.codec.decode)
            row = asdict(Row.of(report))
            run.finish(row)
            return row

        return Row(**self._stage(f"eval-{name}", "eval", config, work))

    def validation_curve(self, stage: str) -> list[tuple[float, float]]:
        """Validation EM over training seconds."""
        points, seconds = [], 0.0
        for row in read_metrics(self.path(stage)):
            known = measured(row, "seconds")
            seconds = seconds if known is None else known
            if (em := measured(row, "eval_em")) is not None:
                points.append((seconds, em))
        return points
