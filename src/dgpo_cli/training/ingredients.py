"""The parts of a training run, from its settings: objective, questions, and the agent text of its models."""

from __future__ import annotations

import random
from pathlib import Path

from dgpo_cli.core.types import Question
from dgpo_cli.errors import ConfigError, ModelError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import Need, Objective
from dgpo_cli.qa_sets import read_questions, training_set
from dgpo_cli.training.settings import KDSettings, RLSettings, TrainSettings


def rl_objective(settings: RLSettings) -> Objective:
    """Raises ConfigError for a method without rewards, or one whose teacher is missing."""
    objective = registry.create(settings.method, settings.objective)
    if Need.REWARD not in objective.needs:
        raise ConfigError(f"method {settings.method!r} has no reward", hint=f"use `dgpo kd --method {settings.method}`")
    if objective.default_samples > 1 and settings.samples == 1:
        raise ConfigError(
            f"method {settings.method!r} compares attempts at one question, and samples = 1 makes one",
            hint=f"leave samples out for {objective.default_samples}, or give 2 or more",
        )
    _require_teacher(settings, objective)
    return objective


def episodes_per_step(settings: RLSettings, objective: Objective) -> int:
    return settings.batch_size * (settings.samples or objective.default_samples)


def updates_per_step(settings: TrainSettings, objective: Objective) -> int:
    """No more than there are episodes, of which every update has one at least."""
    if not isinstance(settings, RLSettings):
        return 1
    return min(settings.mini_batches, episodes_per_step(settings, objective))


def needs_teacher(objective: Objective) -> bool:
    return bool({Need.TEACHER_LOGPROBS, Need.TEACHER_DISTRIBUTION} & objective.needs)


def has_critic(objective: Objective) -> bool:
    return Need.VALUES in objective.needs


def agents(settings: RLSettings) -> tuple[str, ...]:
    """Models whose record decides how episodes are rolled out: a raw student takes its teacher's."""
    if settings.teacher is None or not needs_teacher(rl_objective(settings)):
        return (settings.student,)
    return settings.student, settings.teacher


def training_questions(settings: RLSettings) -> tuple[list[Question], list[Question]]:
    """Questions to train on and to validate with; without a validation file the latter are held out of the former."""
    bench_dir = None if settings.bench_dir is None else Path(settings.bench_dir)
    questions = training_set(settings.questions, bench_dir)
    if settings.eval_data is not None:
        return questions, read_questions(Path(settings.eval_data))[: settings.eval_limit]
    order = list(range(len(questions)))
    random.Random(f"held out {settings.seed}").shuffle(order)
    held_out = set(order[: min(settings.eval_limit, len(questions) // 20)])
    return (
        [q for i, q in enumerate(questions) if i not in held_out],
        [q for i, q in enumerate(questions) if i in held_out],
    )


def kd_objective(settings: KDSettings) -> Objective:
    """Raises ConfigError for a method that trains on rewards, or one whose teacher is missing."""
    objective = registry.create(settings.method, settings.objective)
    if Need.REWARD in objective.needs:
        raise ConfigError(
            f"method {settings.method!r} trains on rewards", hint=f"use `dgpo rl --method {settings.method}`"
        )
    _require_teacher(settings, objective)
    return objective


def _require_teacher(settings: TrainSettings, objective: Objective) -> None:
    if settings.teacher is None and needs_teacher(objective):
        raise ConfigError(f"method {settings.method!r} needs a teacher", hint="give --teacher, e.g. --teacher qwen-3b")


def searches(objective: Objective) -> bool:
    """Whether sequences are written in the search loop while the objective trains."""
    return objective.on_policy or objective.teacher_writes


def common_text(student: tuple[Protocol, bool], teacher: tuple[Protocol, bool]) -> tuple[Protocol, bool]:
    """The agent text of student and teacher, each with whether it was trained with its own.

    A raw student takes the teacher's: the teacher scores the student's tokens, so it must know the text around them.
    Raises ModelError if each was trained with another one.
    """
    if student[0].same_text(teacher[0]) or (student[1] and not teacher[1]):
        return student
    if student[1]:
        raise ModelError(
            f"student and teacher learned other agent texts ({student[0].name} and {teacher[0].name})",
            hint="cold-start the student on this teacher's trajectories: dgpo distill-data, dgpo kd",
        )
    return teacher[0], student[1]
