"""The whole path on the offline world: world, index, teacher, trajectories, cold start, RL, evaluation, one table.

The settings are those of `recipes/quickstart.toml`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from dgpo_cli.core.child import end_with_parent
from dgpo_cli.core.figures import percent
from dgpo_cli.core.progress import Bar, Progress, Say
from dgpo_cli.errors import DgpoError
from dgpo_cli.models.devices import training_device
from dgpo_cli.offline.project import PathResult
from dgpo_cli.offline.stages import Row, Stages, Trial

RL_ROWS = ("ppo", "dgpo_k1", "dgpo")
BESIDE = ("ppo", "dgpo_k1")  # trained while dgpo and kd_longer are
ROWS = ("student", "teacher", "kd", "kd_longer", "ppo", "dgpo_k1", "dgpo")


class Quickstart(Stages):
    recipe_name = "quickstart"

    def __init__(
        self, folder: Path, *, seed: int, device: str, say: Say, bar: Bar, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(folder, seed=seed, device=device, say=say, bar=bar, settings=settings)
        self._made: set[str] = set()  # rows that another process trained during this call

    def run(self) -> PathResult[Row]:
        """All stages."""
        started = time.perf_counter()
        student, teacher, trajectories, cold = self._cold()
        with self._beside(BESIDE, cold, teacher):
            dgpo = self._row("dgpo", cold, teacher)
            longer = self.recipe["kd"] | {
                "seconds": self.budget("dgpo"),
                "steps": 1_000_000,
                "schedule": "constant",
            }
            kd_longer = self.kd("kd_longer", cold, teacher, trajectories, longer)
        beside = {row: self._row(row, cold, teacher) for row in BESIDE}
        models = {"student": student, "teacher": teacher, "kd": cold, "kd_longer": kd_longer, "dgpo": dgpo} | beside
        return self.finished({name: self.evaluate(name, models[name]) for name in ROWS}, models, started)

    def search(self) -> list[Trial]:
        """Every RL row over the recipe's grid of learning rates; best EM on validation questions."""
        _, teacher, _, cold = self._cold()
        found = []
        for row in RL_ROWS:
            for lr in self.recipe["search"]["lr"]:
                stage = f"search/{row}-lr{lr:g}"
                self._row(stage, cold, teacher, row, lr=lr)
                found.append(Trial(row, {"lr": lr}, self.result(stage)["best"]))
        return found

    def _cold(self) -> tuple[Path, Path, Path, Path]:
        """Untrained student, teacher, its trajectories, and the cold start that every RL row begins with."""
        student, teacher, trajectories = self.start()
        return student, teacher, trajectories, self.kd("kd", student, teacher, trajectories, self.recipe["kd"])

    @contextmanager
    def _beside(self, rows: Sequence[str], start: Path, teacher: Path) -> Iterator[None]:
        """Train `rows` in a process of their own on another core, if there is one; it ends with the block.

        Every run uses one thread, so the figures are the same. What that process leaves undone, the caller does.
        """
        idle = all((self.path(row) / "best").is_dir() for row in rows)
        if idle or training_device(self.device).type != "cpu" or (os.cpu_count() or 1) < 2:
            yield
            return
        started = time.time()
        work = (self.folder, self.seed, self.device, self.recipe, rows, start, teacher, self._allowed)
        process = multiprocessing.get_context("spawn").Process(target=_train, args=work, daemon=True)
        process.start()
        self._say(f"{', '.join(rows)}: in a process of their own meanwhile")
        try:
            yield
            process.join()
        finally:
            process.terminate()  # saved states are whole at any moment
            process.join()
        records = {row: self.path(row) / "run.json" for row in rows}
        self._made = {row for row, record in records.items() if record.is_file() and record.stat().st_mtime > started}

    def _reuse(self, what: str) -> None:
        if what in self._made:
            self._say(
                f"{what}: {self.result(what)['seconds']:.0f} s, best validation EM {percent(self.result(what)['best'])}"
            )
            return
        super()._reuse(what)

    def _row(self, stage: str, start: Path, teacher: Path, row: str | None = None, **changes: object) -> Path:
        row = row or stage
        method = "ppo" if row == "ppo" else "dgpo"
        return self.rl(stage, start, teacher, self.recipe["rl"] | self.recipe[row] | {"method": method} | changes)

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Validation EM over training seconds, by row."""
        return {name: self.validation_curve(name) for name in ("kd", "kd_longer", "ppo", "dgpo_k1", "dgpo")}


def _train(
    folder: Path,
    seed: int,
    device: str,
    settings: Mapping[str, Any],
    rows: Sequence[str],
    start: Path,
    teacher: Path,
    allowed: bool,
) -> None:
    """Train rows silently; the parent process repeats and reports any failure."""
    end_with_parent()
    torch.set_num_threads(1)
    work = Quickstart(folder, seed=seed, device=device, say=lambda _: None, bar=_no_bar, settings=settings)
    work.may_replace = lambda _: allowed
    with suppress(KeyboardInterrupt, DgpoError):
        for row in rows:
            work._row(row, start, teacher)


def _no_bar(_: str, __: str) -> nullcontext[Progress]:
    return nullcontext(lambda *_: None)
