"""The whole path on the offline world: world, index, teacher, trajectories, cold start, RL, evaluation, one table.

The settings are those of `recipes/quickstart.toml`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpo_cli.pipelines.stages import Bar, Say, Stages, shipped_recipe

RL_ROWS = ("ppo", "dgpo_k1", "dgpo")
ROWS = ("student", "teacher", "kd", "kd_longer", "ppo", "dgpo_k1", "dgpo")


def recipe() -> dict[str, Any]:
    return shipped_recipe("quickstart")


class Quickstart(Stages):
    """`settings` has the recipe's form and replaces it."""

    def __init__(
        self, folder: Path, *, seed: int, device: str, say: Say, bar: Bar, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(folder, seed=seed, device=device, say=say, bar=bar, settings=settings or recipe())

    def run(self) -> dict[str, Any]:
        """All stages; returns {"seconds", "em", "rows", "reused", "settings"}."""
        started = time.perf_counter()
        student, teacher, trajectories, cold = self._cold()
        dgpo = self._row("dgpo", cold, teacher)
        models = {
            "student": student,
            "teacher": teacher,
            "kd": cold,
            "ppo": self._row("ppo", cold, teacher),
            "dgpo_k1": self._row("dgpo_k1", cold, teacher),
            "dgpo": dgpo,
        }
        longer = self.recipe["kd"] | {
            "seconds": self.result("dgpo")["seconds"],
            "steps": 1_000_000,
            "schedule": "constant",
        }
        models["kd_longer"] = self.kd("kd_longer", cold, teacher, trajectories, longer)
        rows = {name: self.evaluate(name, models[name]) for name in ROWS}
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
        _, teacher, _, cold = self._cold()
        found = []
        for row in RL_ROWS:
            for lr in self.recipe["search"]["lr"]:
                stage = f"search/{row}-lr{lr:g}"
                self._row(stage, cold, teacher, row, lr=lr)
                found.append({"row": row, "lr": lr, "validation_em": self.result(stage)["best"]})
        return {"grid": found, "folder": str(self.folder)}

    def _cold(self) -> tuple[Path, Path, Path, Path]:
        """Untrained student, teacher, its trajectories, and the cold start that every RL row begins with."""
        student, teacher, trajectories = self.start()
        return student, teacher, trajectories, self.kd("kd", student, teacher, trajectories, self.recipe["kd"])

    def _row(self, stage: str, start: Path, teacher: Path, row: str | None = None, **changes: object) -> Path:
        row = row or stage
        method = "ppo" if row == "ppo" else "dgpo"
        return self.rl(stage, start, teacher, self.recipe["rl"] | self.recipe[row] | {"method": method} | changes)

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Validation EM over training seconds, by row."""
        return {name: self.validation_curve(name) for name in ("kd", "kd_longer", "ppo", "dgpo_k1", "dgpo")}
