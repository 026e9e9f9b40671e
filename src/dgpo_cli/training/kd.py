"""Cold start: a student learns from trajectories that the teacher wrote."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.progress import Progress, Steps
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Question, Trajectory
from dgpo_cli.engine.in_process.engine import Blend
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.devices import inference_dtype, training_device, world
from dgpo_cli.models.half import compute_dtype
from dgpo_cli.models.lm_head import hidden_states, token_logprobs
from dgpo_cli.models.load import LoadedModel, load_model
from dgpo_cli.models.tokenizer_file import require_same_tokenizer
from dgpo_cli.objectives.base import Objective
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.batch import Sample, micro_batches, pack
from dgpo_cli.training.collapse import Guard
from dgpo_cli.training.ingredients import kd_objective, needs_teacher, searches
from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing, restrict
from dgpo_cli.training.loop import Plan
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.replay import ReplayBuffer
from dgpo_cli.training.run.fitting import Say, fit
from dgpo_cli.training.run.guarding import Guarding
from dgpo_cli.training.run.lifecycle import begin_with, run_training, smaller_next_time, text_of
from dgpo_cli.training.run.progress_line import glimpses
from dgpo_cli.training.run.validation import evaluator, team
from dgpo_cli.training.settings import KDSettings, deviations
from dgpo_cli.training.sizes.jobs import Sizes, with_sizes
from dgpo_cli.training.source import Mixture, Source, TeacherTrajectories
from dgpo_cli.training.teacher.trajectory_files import TrajectorySet, read_trajectories


def run_kd(
    settings: KDSettings,
    run: RunDir,
    *,
    keep: int,
    progress: Progress | None,
    warn: Callable[[str], None] | None = None,
    say: Say | None = None,
    show: Say | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Load what the settings name, and train; `show` is told one of the student's episodes now and then.

    `sizes` are those that the check before fitted to the memory.
    """
    device = training_device(settings.device)
    settings = with_sizes(settings, begin_with(run, sizes or {}, say))
    data = read_trajectories(Path(settings.trajectories))
    student = load_model(settings.student, device=device, precision=settings.precision)
    teacher = None
    _require_tokens_of(data, student)
    if needs_teacher(kd_objective(settings)):
        assert settings.teacher is not None
        teacher = load_model(
            settings.teacher,
            device=device,
            dtype=inference_dtype(device, None if settings.teacher_8bit else settings.teacher, settings.precision),
            eight_bit=settings.teacher_8bit,
        )
        require_same_tokenizer(student.tokenizer, teacher.tokenizer)
    with smaller_next_time(run, settings):
        return distil(
            settings,
            run,
            student=student,
            teacher=teacher,
            data=data,
            retriever=None
            if settings.index is None
            else open_index(settings.index, device=settings.device, rerank=settings.rerank).retriever,
            validation_questions=()
            if settings.eval_data is None
            else read_questions(Path(settings.eval_data))[: settings.eval_limit],
            keep=keep,
            progress=progress,
            warn=warn,
            say=say,
            show=show,
        )


def _require_tokens_of(data: TrajectorySet, student: LoadedModel) -> None:
    if data.tokenizer not in (None, Codec(student.tokenizer, student.protocol).digest):
        raise InputError(
            f"{data.path} holds tokens of another tokenizer than the one of {student.source.name}",
            hint="train a student of the teacher's family, or make new data: `dgpo distill-data`",
        )


def distil(
    settings: KDSettings,
    run: RunDir,
    *,
    student: LoadedModel,
    teacher: LoadedModel | None,
    data: TrajectorySet,
    retriever: Retriever | None = None,
    validation_questions: Sequence[Question] = (),
    keep: int = 1,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    say: Say | None = None,
    show: Say | None = None,
) -> dict[str, Any]:
    """Train `student` on `data`; see `run_training` for the result.

    Validation is the mean negative log-likelihood of held-out trajectories (split by question); with questions, EM in
    the search loop decides which weights are the best. Raises ConfigError where the student is to write and there is no
    `retriever`.
    """
    steps_told = Steps(progress)
    run.note(
        deviations=deviations(asdict(settings)), computed_in=str(compute_dtype(student.model)).removeprefix("torch.")
    )
    protocol = text_of(run, student.tokenizer, Protocol.from_json(data.protocol))
    codec = Codec(student.tokenizer, protocol)
    objective = kd_objective(settings)
    training, validation = split(data.trajectories, settings.validation_share, settings.seed)
    stored = TeacherTrajectories(training, settings.batch_size, settings.seed)
    steps, eval_every, save_every = settings.counts(stored.steps_per_epoch)
    learner = _learner(settings, objective, student, teacher, codec, steps)
    if settings.fit:
        longest = max(len(t.token_ids) for t in training)
        fit(
            run,
            learner,
            length=max(longest, settings.rollout.max_tokens) if searches(objective) else longest,
            sequences=settings.batch_size,
            limit_gib=settings.fit_gib,
            say=say,
        )
    agent: Agent | None = None
    source: Source = stored
    if retriever is not None:
        agent = Agent.of(student.model, codec, retriever, settings.rollout, seed=settings.seed)
    if searches(objective):
        source = mixture = _mixture(settings, learner, stored, agent, steps_told.inside("episodes"))
        if show is not None:
            mixture.roll = glimpses(mixture.roll, show)
    plan = Plan(steps, eval_every=eval_every, save_every=save_every, seed=settings.seed, seconds=settings.seconds)
    return run_training(
        run,
        learner,
        source,
        plan,
        evaluate=_evaluation(learner, validation, agent, validation_questions, run.path, steps_told),
        protocol=protocol,
        keep=keep,
        progress=steps_told,
        guarding=Guarding(Guard(settings.collapse), settings.on_collapse, warn),
    )


def _learner(
    settings: KDSettings,
    objective: Objective,
    student: LoadedModel,
    teacher: LoadedModel | None,
    codec: Codec,
    steps: int,
) -> Learner:
    restrict(student.model, settings)
    optimizer = OptimizerSettings(
        settings.lr, settings.optimizer, settings.warmup_steps, settings.schedule, beta2=settings.beta2
    )
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(student.model)
    return Learner(
        objective=objective,
        codec=codec,
        student=student.model,
        policy_optimizer=Optimizer(student.model, optimizer, steps),
        teacher=None if teacher is None else teacher.model,
        replay=ReplayBuffer(objective.replay_capacity) if objective.replay_capacity else None,
        micro_batch_tokens=settings.micro_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
        world=world(),
    )


def _evaluation(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    agent: Agent | None,
    questions: Sequence[Question],
    folder: Path,
    progress: Steps,
) -> Callable[[], Mapping[str, float]]:
    """The loss of held-out trajectories, and EM on the questions where there are some; the score is EM, else -loss."""
    em = None
    if agent is not None and questions:
        em = evaluator(
            agent,
            questions,
            folder=folder,
            world=learner.world,
            model=learner.student,
            progress=progress.inside("validation questions"),
        )

    def evaluate() -> Mapping[str, float]:
        loss = nll(learner, trajectories, progress.inside("validation loss"))
        metrics = {} if loss is None else {"nll": loss}
        if em is not None:
            return metrics | dict(em())
        return metrics | ({"score": -metrics["nll"]} if metrics else {})

    return evaluate


def _mixture(
    settings: KDSettings, learner: Learner, stored: TeacherTrajectories, agent: Agent | None, progress: Progress
) -> Mixture:
    """The source of a method that lets the student, or the teacher, write while it trains."""
    if agent is None:
        raise ConfigError(
            f"method {settings.method!r} searches while it trains, and there is no index", hint="give --index"
        )
    objective = learner.objective
    learner.temperature = settings.rollout.temperature
    writer, roll_teacher = agent, None
    if objective.sampled_from_teacher:
        assert learner.teacher is not None
        blend = Blend(learner.teacher, objective.sampled_from_teacher)
        writer = Agent.of(learner.student, learner.codec, agent.retriever, agent.settings, seed=agent.seed, blend=blend)
    if objective.teacher_writes:
        assert learner.teacher is not None
        teacher = Agent.of(learner.teacher, learner.codec, agent.retriever, agent.settings, seed=agent.seed)
        roll_teacher = team(teacher, learner.world, progress)
    return Mixture(
        stored,
        objective,
        roll=team(writer, learner.world, progress),
        roll_teacher=roll_teacher,
        replay=learner.replay,
    )


def split(trajectories: Sequence[Trajectory], share: float, seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """Training and validation trajectories; all samples of one question fall on the same side."""
    questions = sorted({t.question.key for t in trajectories})
    random.Random(f"validation {seed}").shuffle(questions)
    held_out = set(questions[: math.floor(share * len(questions))])
    sides: tuple[list[Trajectory], list[Trajectory]] = ([], [])
    for trajectory in trajectories:
        sides[trajectory.question.key in held_out].append(trajectory)
    return sides


@torch.no_grad()
def nll(learner: Learner, trajectories: Sequence[Trajectory], progress: Progress | None = None) -> float | None:
    """Mean negative log-likelihood of the written tokens, in nats; None where there is none."""
    mine = learner.world.share([len(t.token_ids) for t in trajectories])
    samples = [Sample.of(trajectories[i]) for i in mine]
    total, count, done = 0.0, 0, 0
    for group in micro_batches(samples, learner.micro_batch_tokens):
        batch = pack([samples[i] for i in group], learner.device)
        hidden = batch.flatten(hidden_states(learner.student, batch.packed))
        logprobs = token_logprobs(
            learner.student,
            hidden,
            batch.token_ids,
            vocabulary_size=learner.codec.vocabulary_size,
            chunk_size=learner.chunk_tokens,
        )
        total -= float(logprobs.sum())
        count += len(logprobs)
        done += len(group)
        if progress is not None:
            progress(done, len(samples))
    sums = learner.world.sum({"nll": total, "tokens": count})
    return sums["nll"] / sums["tokens"] if sums["tokens"] else None
