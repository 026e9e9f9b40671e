"""The learner of a run: trained modules, their optimizers, and the frozen models."""

from __future__ import annotations

from copy import deepcopy

from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.models.devices import world
from dgpo_cli.models.load import LoadedModel
from dgpo_cli.objectives.base import Need, Objective
from dgpo_cli.training.ingredients import needs_teacher, updates_per_step
from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing, restrict
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.replay import ReplayBuffer
from dgpo_cli.training.settings import KDSettings, RLSettings, TrainSettings


def make_learner(
    settings: TrainSettings,
    objective: Objective,
    codec: Codec,
    student: LoadedModel,
    teacher: LoadedModel | None,
    steps: int,
) -> Learner:
    """A learner for `steps` steps, before its first update."""
    restrict(student.model, settings)
    per_step = updates_per_step(settings, objective)
    policy = OptimizerSettings(
        settings.lr,
        settings.optimizer,
        settings.warmup_steps * per_step,
        settings.schedule if isinstance(settings, KDSettings) else "constant",
        beta2=settings.beta2,
    )
    learner = Learner(
        objective=objective,
        codec=codec,
        student=student.model,
        policy_optimizer=Optimizer(student.model, policy, steps * per_step),
        teacher=teacher.model if teacher is not None and needs_teacher(objective) else None,
        replay=ReplayBuffer(objective.replay_capacity) if objective.replay_capacity else None,
        micro_batch_tokens=settings.micro_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
        world=world(),
    )
    if isinstance(settings, RLSettings):
        learner.temperature = settings.rollout.temperature
        learner.engine_logprobs = settings.behavior_logprobs == "engine"
        _add_companions(learner, settings, steps, per_step)
    if settings.gradient_checkpointing:
        for body in learner.bodies:
            enable_gradient_checkpointing(body)
    return learner


def _add_companions(learner: Learner, settings: RLSettings, steps: int, per_step: int) -> None:
    """Reference and critic; both start as the student does now, before a saved state is put into it."""
    student = learner.student
    if Need.REFERENCE_LOGPROBS in learner.objective.needs:
        learner.reference = deepcopy(student).eval().requires_grad_(False)
    if Need.VALUES in learner.objective.needs:
        learner.critic = (
            SharedCritic(student, seed=settings.seed)
            if settings.critic == "shared"
            else Critic(deepcopy(student), seed=settings.seed)
        )
        warmup = settings.critic_warmup_lr_steps * per_step
        adam = OptimizerSettings(settings.critic_lr, settings.optimizer, warmup, beta2=settings.beta2)
        learner.value_optimizer = Optimizer(learner.critic, adam, steps * per_step)
