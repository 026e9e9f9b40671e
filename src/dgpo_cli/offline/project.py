"""A folder in which stages make one thing from another: world, index, models, runs.

A stage that is done is not done again; a stage that was interrupted goes on. What counts is what a stage was made from,
not where that lies, so the folder can be moved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from dgpo_cli.agent.identity import contents, location_digest
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core import folders, schema
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.locks import Lock, lock_inside
from dgpo_cli.core.progress import Bar, Say
from dgpo_cli.core.recipes import shipped
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_config import differing
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_identity import Work
from dgpo_cli.core.run_record import read_run
from dgpo_cli.errors import BusyError, ConfigError
from dgpo_cli.evaluation.measured import MeasuredModel
from dgpo_cli.evaluation.measurement import measure
from dgpo_cli.evaluation.suite import Benchmark, EvalSettings
from dgpo_cli.evaluation.summary import Report
from dgpo_cli.models.devices import load_frozen, training_device
from dgpo_cli.offline.ownership import FILES, FOLDERS, MARK, MadeWorld, made_world, require_own
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.run.progress_line import best_validation

_TRAINED = schema.record({"seconds": schema.number(0), "best": schema.maybe(schema.number())})
_RESULTS = {  # what is read of the result of a finished run, by command; of an evaluation, the row that it is
    "kd": _TRAINED,
    "rl": _TRAINED,
    "distill-data": schema.record(dict.fromkeys(("episodes", "kept"), schema.whole(0))),
    "make-questions": schema.record({"questions": schema.map_of(schema.whole(0))}),
}
_BUDGETS = schema.map_of(schema.record({"weights": schema.text(), "seconds": schema.number(0)}))


MeasuredRow = TypeVar("MeasuredRow")


@dataclass(frozen=True, slots=True)
class PathResult(Generic[MeasuredRow]):
    """A whole path: figures by model, and where the models are."""

    seconds: float  # of this call
    rows: dict[str, MeasuredRow]
    models: dict[str, str]  # folders
    folder: str
    reused: list[str]  # stages that were done before


def read_row(kind: type[MeasuredRow], record: Mapping[str, Any], place: str) -> MeasuredRow:
    """A row from the JSON of its dataclass, where the pair of its interval is a list. Raises InputError."""
    pair = schema.tuple_of(schema.number(), schema.number())
    schema.check(record, schema.of(kind, em_interval=pair), f"{place} is damaged", hint=f"delete {place}")
    return kind(**{**record, "em_interval": tuple(record["em_interval"])})


class Project:
    """`folder` keeps everything that is made. `say` gets one line per stage, `bar` makes a progress bar.

    `settings` have the form of the shipped recipe and stand in its place.
    """

    bench: ClassVar[str]  # what the test questions are called in records
    recipe_name: ClassVar[str]  # of the shipped one

    def __init__(
        self, folder: Path, *, seed: int, device: str, say: Say, bar: Bar, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.seed, self.device = folder, seed, str(training_device(device))
        self._say, self._bar = say, bar
        self.recipe = dict(settings or self.default_recipe())
        self.rollout = apply_options(RolloutSettings, self.recipe["rollout"])
        self.world_folder, self.index_folder = folder / "world", folder / "index"
        self.reused: list[str] = []
        self.may_replace: Callable[[str], bool] = lambda _: False  # asked once, before finished work is replaced
        self._allowed = False

    @classmethod
    def default_recipe(cls) -> dict[str, Any]:
        return shipped(cls.recipe_name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The folder for this process and those that it starts; what killed ones left unfinished in it is deleted.

        Raises ConfigError where parts of it are somebody else's.
        """
        with Lock.inside(self.folder, hint="wait for it, or give another --out"):
            self._own()
            for part in FOLDERS:
                folders.settle(self.folder / part)
            for folder in (self.folder, self.world_folder):
                folders.sweep(folder)
            for left in list((self.folder / "runs").rglob(lock_inside(Path()).name)):
                with suppress(BusyError), Lock.inside(left.parent):
                    folders.sweep(left.parent)
            yield

    def _own(self) -> None:
        """Mark the folder before anything is made in it; one of earlier versions is known by its world."""
        require_own(self.folder)
        if not (self.folder / MARK).is_file():
            write_atomic(self.folder / MARK, "")

    def forget(self) -> None:
        """Delete everything that was made; anything else in the folder stays."""
        for part in FOLDERS:
            folders.remove(self.folder / part)
        for part in FILES:
            (self.folder / part).unlink(missing_ok=True)

    def finished(
        self, rows: Mapping[str, MeasuredRow], models: Mapping[str, Path], started: float
    ) -> PathResult[MeasuredRow]:
        """The result of a path that began at `started` of time.perf_counter."""
        places = {name: str(path) for name, path in models.items()}
        return PathResult(time.perf_counter() - started, dict(rows), places, str(self.folder), self.reused)

    def path(self, stage: str) -> Path:
        return self.folder / "runs" / stage

    def _stage(
        self,
        stage: str,
        command: str,
        config: Mapping[str, Any],
        work: Callable[[RunDir], object],
    ) -> Mapping[str, Any]:
        """Do a stage unless its folder holds a finished run of the same settings on the same inputs.

        Returns what `work` finished the run with. The settings only say where the inputs lie: what counts is what is
        in them. Raises ConfigError where finished work would have to be replaced and nobody allows it.
        """
        path = self.path(stage)
        seen = contents(config)
        record = read_run(path) if (path / "run.json").is_file() else {}
        wanted = Work(command, config, seen)
        same = record.get("digest") == wanted.digest
        if same and record["status"] == "finished":
            self._reuse(stage)
            return self.result(stage)
        if record and not same:
            self._replace(path, record["status"] == "finished", differing(path, record, wanted))
        started = time.perf_counter()
        with RunDir.open(command, config, out=path, fresh=not same, inputs=seen) as run:
            work(run)
            result = self.result(stage)
            best = best_validation(result.get("best"), run.metrics())
        self._say(f"{stage}: {time.perf_counter() - started:.0f} s{best}")
        return result

    def _replace(self, path: Path, finished: bool, why: str) -> None:
        """Mark the content of `path` to be made again; finished work only if that is allowed."""
        if finished and not self._allowed:
            self._allowed = self.may_replace(f"{path} is finished, and what is asked for now differs: {why}")
            if not self._allowed:
                raise ConfigError(
                    f"{path} is finished and would be replaced: {why}",
                    hint="give --replace to make it and what follows from it again, or another --out",
                )
        self._say(f"{path.name}: made again ({why})")

    def result(self, stage: str) -> Mapping[str, Any]:
        path = self.path(stage)
        record = read_run(path)
        kind = schema.record({"result": _RESULTS.get(record["command"], schema.map_of(schema.ANYTHING))})
        schema.check(record, kind, f"{path / 'run.json'} is damaged", hint=f"delete {path}")
        return dict(record["result"])

    def made_world(self) -> MadeWorld | None:
        """None without a world."""
        return made_world(self.world_folder)

    def _reuse(self, what: str) -> None:
        self.reused.append(what)
        self._say(f"{what}: done before, reused")

    def budget(self, stage: str) -> float:
        """Training seconds of a finished stage, for another one to have as many.

        Decided once: trained again to the same weights, which takes other seconds, the stage leaves the other as it is.
        """
        file, weights = self.folder / "budgets.json", location_digest(self.path(stage))
        known = schema.read_record(file, _BUDGETS, hint=f"delete {file}") if file.is_file() else {}
        if known.get(stage, {}).get("weights") != weights:
            known |= {stage: {"weights": weights, "seconds": self.result(stage)["seconds"]}}
            write_atomic(file, json.dumps(known, indent=1) + "\n")
        return float(known[stage]["seconds"])

    def measured(
        self,
        name: str,
        model: Path,
        count: int | None,
        summarize: Callable[[Report], Mapping[str, Any]],
        *,
        wave: int | None = None,
        stop_repeats: bool = False,
    ) -> Mapping[str, Any]:
        """A measurement of the greedy answers of `model` to the first `count` test questions.

        They are a run like that of `dgpo eval`.
        """
        data, limits = self.world_folder / "test.jsonl", self.rollout
        settings = EvalSettings(
            model=str(model),
            benchmarks=(self.bench,),
            indexes={self.bench: str(self.index_folder)},
            limit=count,
            top_k=limits.top_k,
            max_searches=limits.max_turns,
            max_new_tokens=limits.max_new_tokens,
            max_observation_tokens=limits.max_observation_tokens,
            max_prompt_tokens=limits.max_prompt_tokens,
            max_tokens=limits.max_tokens,
            wave=wave or limits.wave,
            seed=self.seed,
            device=self.device,
            stop_repeats=stop_repeats,
        )

        def work(run: RunDir) -> None:
            loaded = load_frozen(str(model), device=self.device)
            benchmark = Benchmark(self.bench, read_questions(data)[:count], open_index(self.index_folder))
            reports, _ = measure(run, settings, [benchmark], MeasuredModel.of(loaded), bar=self._bar)
            run.finish(summarize(reports[self.bench]))

        return self._stage(f"eval-{name}", "eval", asdict(settings) | {"data": str(data)}, work)
