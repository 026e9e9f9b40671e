"""Cold start: a student learns from trajectories that the teacher wrote."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.protocol import Protocol
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Trajectory
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import LoadedModel, load_model, require_same_tokenizer
from dgpo_cli.models.vocab import hidden_states, token_logprobs
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import Need, Objective
from dgpo_cli.pipelines.agents import Agent, evaluator, rollout_settings
from dgpo_cli.pipelines.distill_data import TrajectorySet, read_trajectories
from dgpo_cli.pipelines.settings import KDSettings
from dgpo_cli.pipelines.training import run_training
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.train.batch import Sample, micro_batches, pad
from dgpo_cli.train.devices import inference_dtype, training_device
from dgpo_cli.train.learner import Learner, Optimizer, OptimizerSettings, enable_gradient_checkpointing
from dgpo_cli.train.loop import Plan
from dgpo_cli.train.source import TeacherTrajectories


def make_objective(settings: KDSettings) -> Objective:
    """Raises ConfigError for a method that trains on rewards."""
    objective = registry.create(settings.method, settings.objective)
    if Need.REWARD in objective.needs:
        raise ConfigError(
            f"method {settings.method!r} trains on rewards", hint=f"use `dgpo rl --method {settings.method}`"
        )
    return objective


def run_kd(settings: KDSettings, run: RunDir, *, keep: int, progress: Progress | None) -> dict[str, Any]:
    """Load what the settings name, and train."""
    device = training_device(settings.device)
    data = read_trajectories(Path(settings.trajectories))
    student = load_model(settings.student, device=device)
    teacher = None
    if make_objective(settings).needs:
        teacher = load_model(
            settings.teacher, device=device, dtype=inference_dtype(device), eight_bit=settings.teacher_8bit
        )
        require_same_tokenizer(student.tokenizer, teacher.tokenizer)
    evaluate = None
    if settings.eval_index is not None and settings.eval_questions is not None:
        codec = Codec(student.tokenizer, Protocol.from_json(data.protocol))
        options = rollout_settings(settings.rollout, settings.seed)
        agent = Agent.of(student.model, codec, open_index(settings.eval_index).retriever, options)
        evaluate = evaluator(agent, read_questions(Path(settings.eval_questions))[: settings.eval_limit])
    return distil(
        settings, run, student=student, teacher=teacher, data=data, evaluate=evaluate, keep=keep, progress=progress
    )


def distil(
    settings: KDSettings,
    run: RunDir,
    *,
    student: LoadedModel,
    teacher: LoadedModel | None,
    data: TrajectorySet,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    keep: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `student` on `data`; see `run_training` for the result.

    Validation is the mean negative log-likelihood of held-out trajectories (split by question); with `evaluate` (EM in
    the search loop) that decides which weights are the best.
    """
    protocol = Protocol.from_json(data.protocol)
    codec = Codec(student.tokenizer, protocol)
    training, validation = split(data.trajectories, settings.validation_share, settings.seed)
    source = TeacherTrajectories(training, settings.batch_size, settings.seed)
    steps = settings.steps or settings.epochs * source.steps_per_epoch
    optimizer = OptimizerSettings(settings.lr, settings.warmup_steps, settings.schedule, beta2=settings.beta2)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(student.model)
    learner = Learner(
        objective=make_objective(settings),
        codec=codec,
        student=student.model,
        policy_optimizer=Optimizer(student.model, optimizer, steps),
        teacher=None if teacher is None else teacher.model,
        micro_batch_tokens=settings.micro_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
    )
    every = settings.eval_every if settings.eval_every is not None else source.steps_per_epoch
    plan = Plan(steps, eval_every=every, save_every=every, seed=settings.seed, seconds=settings.seconds)

    def validate() -> Mapping[str, float]:
        metrics = {"nll": nll(learner, validation)} if validation else {}
        if evaluate is not None:
            return metrics | dict(evaluate())
        return metrics | ({"score": -metrics["nll"]} if metrics else {})

    return run_training(run, learner, source, plan, evaluate=validate, protocol=protocol, keep=keep, progress=progress)


def split(trajectories: Sequence[Trajectory], share: float, seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """Training and validation trajectories; all samples of one question fall on the same side."""
    questions = sorted({f"{t.question.qa_set}/{t.question.id}" for t in trajectories})
    random.Random(f"validation {seed}").shuffle(questions)
    held_out = set(questions[: math.floor(share * len(questions))])
    sides: tuple[list[Trajectory], list[Trajectory]] = ([], [])
    for trajectory in trajectories:
        sides[f"{trajectory.question.qa_set}/{trajectory.question.id}" in held_out].append(trajectory)
    return sides


@torch.no_grad()
def nll(learner: Learner, trajectories: Sequence[Trajectory]) -> float:
    """Mean negative log-likelihood of the written tokens, in nats."""
    samples = [Sample.of(t) for t in trajectories]
    total, count = 0.0, 0
    for group in micro_batches(samples, learner.micro_batch_tokens):
        batch = pad([samples[i] for i in group], learner.codec.pad_id, learner.device)
        hidden = batch.flatten(hidden_states(learner.student, batch.input_ids, batch.attention_mask))
        logprobs = token_logprobs(
            learner.student,
            hidden,
            batch.token_ids,
            vocabulary_size=learner.codec.vocabulary_size,
            chunk_size=learner.chunk_tokens,
        )
        total -= float(logprobs.sum())
        count += len(logprobs)
    return total / max(1, count)
