"""Reaction of a run to an alarm of its collapse guard: warn, stop, or go back to its best state at a lower rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import TrainingError
from dgpo_cli.training import checkpoint
from dgpo_cli.training.collapse import Guard, OnCollapse
from dgpo_cli.training.learner import Learner

ROLLBACK = "rollback"  # folder of a run
KEY = "collapse"  # of the guard's state in a checkpoint's extra


@dataclass(slots=True)
class Guarding:
    """A guard and what follows its alarms.

    `rollback/` of the run folder holds the learner as it was at its best evaluation: models, optimizers and objective.
    Steps and questions go on from where they are; only what was learned goes back.
    """

    guard: Guard
    action: OnCollapse
    warn: Callable[[str], None] | None = None

    def resume(self, run: RunDir, learner: Learner, step: int, extra: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint of `step`; what was kept after it never happened."""
        if KEY in extra:
            self.guard.load_state_dict(extra[KEY])
        for path in checkpoint.list_states(_folder(run)):
            if _step(path) > step:
                run.remove(path)
        _slow_down(learner, self.guard.lr_scale)

    def keep_best(self, run: RunDir, learner: Learner, step: int) -> None:
        if self.action == "rollback":
            checkpoint.save(_folder(run), learner, step, {}, keep=step + 2)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {KEY: self.guard.state_dict()}

    def saved(self, run: RunDir) -> None:
        """A checkpoint is complete: no resumed run goes back to a best state before the newest one."""
        for path in checkpoint.list_states(_folder(run))[:-1]:
            run.remove(path)

    def finish(self, run: RunDir) -> None:
        run.remove(_folder(run))

    def watch(self, run: RunDir, learner: Learner, step: int, metrics: Mapping[str, float]) -> None:
        """Raises TrainingError where the run has to end."""
        alarms = self.guard.look(step, metrics)
        if not alarms:
            return
        told = "; ".join(str(alarm) for alarm in alarms)
        done = "warned"
        if self.action == "rollback" and self.guard.roll_back():
            best, _ = checkpoint.load_latest(_folder(run), learner)
            assert checkpoint.list_states(_folder(run)), f"{run.path} has no state to go back to"
            factor = self.guard.settings.lr_factor
            _slow_down(learner, factor)
            done = f"back to the weights of step {best}, learning rates times {self.guard.lr_scale:g}"
        elif self.action != "warn":
            done = "stopped"
        for alarm in alarms:
            run.log(step, alarm.to_json() | {"action": done})
        if self.warn is not None:
            self.warn(f"{told}: {done}")
        if done == "stopped":
            raise TrainingError(
                f"training collapsed: {told}",
                hint=f"lower --lr, or give --on-collapse rollback; the best weights so far are in {run.path}/best",
            )


def _folder(run: RunDir) -> Path:
    return run.path / ROLLBACK


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _slow_down(learner: Learner, factor: float) -> None:
    for _, optimizer in learner.optimizers():
        optimizer.settings = replace(optimizer.settings, lr=optimizer.settings.lr * factor)
