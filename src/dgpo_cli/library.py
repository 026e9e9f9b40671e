"""The public names of `dgpo_cli`, for Python: docs/python.md shows them, and a test holds them.

`import dgpo_cli` is light: this file, and torch with it, is read when one of the names is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dgpo_cli.agent.agent import Agent as Agent
from dgpo_cli.agent.identity import contents
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory as Trajectory
from dgpo_cli.core.types import Question as Question
from dgpo_cli.evaluation import run
from dgpo_cli.evaluation.summary import Report as Report
from dgpo_cli.models.devices import load_frozen
from dgpo_cli.models.load import LoadedModel as LoadedModel
from dgpo_cli.models.sources import context_of, search_limits
from dgpo_cli.objectives.base import Need
from dgpo_cli.objectives.base import Objective as Objective
from dgpo_cli.objectives.registry import create
from dgpo_cli.qa_sets import read_questions as read_questions
from dgpo_cli.retrieval.open import OpenIndex as OpenIndex
from dgpo_cli.retrieval.open import open_index as open_index
from dgpo_cli.training.ingredients import agents
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.rl import run_rl
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.teacher.trajectory_files import recorded_limits


def load_model(name: str, *, device: str = "auto") -> LoadedModel:
    """A model to ask: an alias, hub id, folder, GGUF file, or run. Raises ModelError saying why it cannot be had."""
    return load_frozen(name, device=device)


def evaluate(
    agent: Agent, questions: Sequence[Question], *, samples: int = 1, progress: Progress | None = None
) -> Report:
    """Answer every question `samples` times, and grade the answers by exact match; nothing is written.

    Raises RetrievalError as soon as too many searches failed.
    """
    return run.evaluate(
        questions, run_batch=agent.finished, with_turns=agent.codec.with_turns, samples=samples, progress=progress
    )


def train(
    method: str, *, out: str | Path, keep: int = 1, progress: Progress | None = None, **settings: Any
) -> dict[str, Any]:
    """Train by a method of `dgpo kd` or `dgpo rl`, with their settings by name; the best weights are in `out`/best.

    What the commands do: interrupted, the same call goes on, and limits of episodes that `rollout` leaves open are
    those that the models were trained with. Memory is not checked before. Returns {"steps", "best", "seconds",
    "path", "untrained_steps"}; raises ConfigError for a setting that does not exist, naming the nearest.
    """
    rewarded = Need.REWARD in create(method, settings.get("objective", {})).needs
    values = {"method": method} | settings
    chosen = apply_options(RLSettings, values) if rewarded else apply_options(KDSettings, values)
    if chosen.index is not None:
        chosen = replace(chosen, rollout=_as_trained(chosen, settings.get("rollout", {})))
    config = asdict(chosen)
    with RunDir.open("rl" if rewarded else "kd", config, out=Path(out), inputs=contents(config)) as folder:
        if isinstance(chosen, RLSettings):
            return asdict(run_rl(chosen, folder, keep=keep, progress=progress))
        return asdict(run_kd(chosen, folder, keep=keep, progress=progress))


def _as_trained(settings: KDSettings | RLSettings, given: Mapping[str, Any]) -> RolloutSettings:
    """The rollout with the limits that trajectories or models record, but for those of `given`."""
    if isinstance(settings, RLSettings):
        limits, _ = search_limits(*agents(settings))
    else:
        limits = recorded_limits(Path(settings.trajectories))
    known: dict[str, Any] = {name: value for name, value in limits.items() if name not in given}
    return replace(settings.rollout, **known).in_context(context_of(settings.student), {**limits, **given})
