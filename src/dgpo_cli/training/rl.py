"""Reinforcement learning of a search agent: rollouts, reward, and a teacher (or reference) that holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.progress import Progress, Steps
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Question
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.models.devices import inference_dtype, training_device, world
from dgpo_cli.models.half import compute_dtype
from dgpo_cli.models.load import LoadedModel, load_model
from dgpo_cli.models.tokenizer_file import require_same_tokenizer
from dgpo_cli.objectives.base import Need, Objective
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.rewards import registry as rewards
from dgpo_cli.training.collapse import Guard
from dgpo_cli.training.ingredients import common_text, needs_teacher, rl_objective, training_questions
from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing, restrict
from dgpo_cli.training.loop import Plan
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.run.fitting import Say, fit
from dgpo_cli.training.run.guarding import Guarding
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.lifecycle import begin_with, run_training, smaller_next_time, text_of
from dgpo_cli.training.run.progress_line import glimpses
from dgpo_cli.training.run.validation import evaluator, team
from dgpo_cli.training.settings import RLSettings, deviations
from dgpo_cli.training.sizes.jobs import Sizes, with_sizes
from dgpo_cli.training.source import Rollouts, require_batch


def run_rl(
    settings: RLSettings,
    run: RunDir,
    *,
    keep: int,
    progress: Progress | None,
    warn: Callable[[str], None] | None = None,
    say: Say | None = None,
    show: Say | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Load what the settings name, and train; `show` is told one of the episodes now and then.

    `sizes` are those that the check before fitted to the memory.
    """
    device = training_device(settings.device)
    settings = with_sizes(settings, begin_with(run, sizes or {}, say))
    assert settings.index is not None
    retriever = open_index(settings.index, device=settings.device, rerank=settings.rerank).retriever
    questions, validation = training_questions(settings)
    student = load_model(settings.student, device=device, precision=settings.precision)
    teacher = None
    if needs_teacher(rl_objective(settings)):
        assert settings.teacher is not None
        teacher = load_model(
            settings.teacher,
            device=device,
            dtype=inference_dtype(device, None if settings.teacher_8bit else settings.teacher, settings.precision),
            eight_bit=settings.teacher_8bit,
        )
        require_same_tokenizer(student.tokenizer, teacher.tokenizer)
        student = with_agent_text(student, teacher)
    if student.raw is not None and warn is not None:
        warn(f"{student.raw}; without a search there is little to reward")
    with smaller_next_time(run, settings):
        return reinforce(
            settings,
            run,
            student=student,
            teacher=teacher,
            retriever=retriever,
            questions=questions,
            validation=validation,
            keep=keep,
            progress=progress,
            warn=warn,
            say=say,
            show=show,
        )


def with_agent_text(student: LoadedModel, teacher: LoadedModel) -> LoadedModel:
    """The student under the agent text of both."""
    own = student.protocol, student.trained_with_protocol
    protocol, _ = common_text(own, (teacher.protocol, teacher.trained_with_protocol))
    return replace(student, protocol=protocol)


def reinforce(
    settings: RLSettings,
    run: RunDir,
    *,
    student: LoadedModel,
    teacher: LoadedModel | None,
    retriever: Retriever,
    questions: Sequence[Question],
    validation: Sequence[Question],
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    keep: int = 1,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    say: Say | None = None,
    show: Say | None = None,
) -> dict[str, Any]:
    """Train `student` on `questions`; see `run_training` for the result. The best weights by validation EM are kept."""
    told = Steps(progress)
    codec = Codec(student.tokenizer, text_of(run, student.tokenizer, student.protocol))
    reward = rewards.weighted(settings.reward) if settings.reward else None
    run.note(
        deviations=deviations(asdict(settings)), computed_in=str(compute_dtype(student.model)).removeprefix("torch.")
    )
    require_batch(questions, settings.batch_size)
    steps, eval_every, save_every = settings.counts(math.ceil(len(questions) / settings.batch_size))
    learner = _learner(settings, rl_objective(settings), student, teacher, codec, steps)
    objective = learner.objective
    samples = settings.samples or objective.default_samples
    rollout = settings.rollout
    if settings.fit:
        found = fit(
            run,
            learner,
            length=rollout.max_tokens,
            sequences=settings.batch_size * samples,
            limit_gib=settings.fit_gib,
            engine=lambda slots: InProcessEngine(student.model, codec, slots=slots, capacity=rollout.max_tokens),
            say=say,
        )
        rollout = replace(rollout, wave=found.wave or rollout.wave)
    agent = Agent.of(student.model, codec, retriever, rollout, seed=settings.seed, reward=reward)
    source = Rollouts(
        questions,
        settings.batch_size,
        settings.seed,
        roll=team(agent, learner.world, told.inside("episodes")),
        samples=samples,
        differing=objective.replaces_uninformative,
    )
    if show is not None:
        source.roll = glimpses(source.roll, show)
    plan = Plan(
        steps,
        mini_batches=settings.mini_batches,
        critic_warmup_steps=settings.critic_warmup_steps,
        eval_every=eval_every,
        save_every=save_every,
        seed=settings.seed,
    )
    return run_training(
        run,
        learner,
        source,
        plan,
        evaluate=evaluate
        or _evaluation(settings, agent, validation, run, learner, told.inside("validation questions")),
        protocol=student.protocol.with_limits(asdict(settings.rollout)),
        keep=keep,
        progress=told,
        guarding=Guarding(Guard(settings.collapse), settings.on_collapse, warn),
        episodes=KeptEpisodes(run.path, codec, each=settings.keep_episodes, steps=steps),
    )


def _evaluation(
    settings: RLSettings,
    agent: Agent,
    validation: Sequence[Question],
    run: RunDir,
    learner: Learner,
    progress: Progress | None,
) -> Callable[[], Mapping[str, float]]:
    """By EM on validation questions; without any there is no score, and the last weights count as the best."""
    chosen = validation[: settings.eval_limit]
    if not chosen:
        return dict
    return evaluator(agent, chosen, folder=run.path, world=learner.world, model=learner.student, progress=progress)


def _learner(
    settings: RLSettings,
    objective: Objective,
    student: LoadedModel,
    teacher: LoadedModel | None,
    codec: Codec,
    steps: int,
) -> Learner:
    restrict(student.model, settings)
    updates = steps * settings.mini_batches
    warmup = settings.warmup_steps * settings.mini_batches
    policy = OptimizerSettings(settings.lr, settings.optimizer, warmup, beta2=settings.beta2)
    learner = Learner(
        objective=objective,
        codec=codec,
        student=student.model,
        policy_optimizer=Optimizer(student.model, policy, updates),
        teacher=teacher.model if teacher is not None and needs_teacher(objective) else None,
        micro_batch_tokens=settings.micro_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
        temperature=settings.rollout.temperature,
        engine_logprobs=settings.behavior_logprobs == "engine",
        world=world(),
    )
    # Both start as the student does now, before it is trained and before a saved state is put into it.
    if Need.REFERENCE_LOGPROBS in objective.needs:
        learner.reference = deepcopy(student.model).eval().requires_grad_(False)
    if Need.VALUES in objective.needs:
        shared = settings.critic == "shared"
        learner.critic = (
            SharedCritic(student.model, seed=settings.seed)
            if shared
            else Critic(deepcopy(student.model), seed=settings.seed)
        )
        critic_warmup = settings.critic_warmup_lr_steps * settings.mini_batches
        critic = OptimizerSettings(settings.critic_lr, settings.optimizer, critic_warmup, beta2=settings.beta2)
        learner.value_optimizer = Optimizer(learner.critic, critic, updates)
    if settings.gradient_checkpointing:
        for body in learner.bodies:
            enable_gradient_checkpointing(body)
    return learner
