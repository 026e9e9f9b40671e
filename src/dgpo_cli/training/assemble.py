"""One assembly of training for every method: models, learner, agent, source, plan and evaluation become a run.

What a method trains on, trajectories of a teacher (`kd`) or questions (`rl`), is its `Material`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Protocol as Interface

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.devices import load_frozen, training_device, world
from dgpo_cli.models.half import compute_dtype
from dgpo_cli.models.load import LoadedModel, keep_tokenizer, load_model
from dgpo_cli.models.tokenizer_file import require_same_tokenizer
from dgpo_cli.objectives.base import Objective
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.rewards.registry import Reward
from dgpo_cli.training.collapse import Guard
from dgpo_cli.training.ingredients import needs_teacher
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.learners import make_learner
from dgpo_cli.training.loop import Plan
from dgpo_cli.training.run.fitting import fit
from dgpo_cli.training.run.guarding import Guarding
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.lifecycle import TrainingResult, run_training, text_of
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.settings import TrainSettings, deviations
from dgpo_cli.training.source import Source

_log = logging.getLogger(__name__)


class Material(Interface):
    """The data of a method, and the settings that depend on it."""

    @property
    def objective(self) -> Objective: ...

    @property
    def reward(self) -> Reward | None:
        """Exact match where None."""

    def text(self, student: LoadedModel) -> Protocol:
        """The agent text that the student reads and writes."""

    def recorded(self, codec: Codec, student: LoadedModel) -> Protocol:
        """The agent text that the best weights are saved with."""

    @property
    def steps_per_pass(self) -> int: ...

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""

    @property
    def sequences(self) -> int:
        """Sequences of a step, at most."""

    @property
    def always_writes(self) -> bool:
        """Whether the student's episodes are all that it trains on, so that `fit` finds a wave for them."""

    def plan(self, steps: int, *, eval_every: int, save_every: int) -> Plan: ...
    def source(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Source: ...
    def evaluation(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Callable[[], Mapping[str, float]]: ...
    def kept(self, codec: Codec, run: OpenRun, steps: int) -> KeptEpisodes | None: ...


def load_models(settings: TrainSettings, objective: Objective) -> tuple[LoadedModel, LoadedModel | None]:
    """Student, and teacher where the method needs one. Raises ModelError, and InputError for other tokens."""
    student = load_model(settings.student, device=training_device(settings.device), precision=settings.precision)
    if student.raw is not None and objective.on_policy:
        _log.warning("%s; without a search there is little to learn from what it writes", student.raw)
    if not needs_teacher(objective):
        return student, None
    assert settings.teacher is not None
    teacher = load_frozen(
        settings.teacher, device=settings.device, precision=settings.precision, eight_bit=settings.teacher_8bit
    )
    require_same_tokenizer(student.tokenizer, teacher.tokenizer)
    if teacher.raw is not None:
        _log.warning("%s; as the teacher it pulls the student to the same", teacher.raw)
    return student, teacher


def load_retriever(settings: TrainSettings) -> Retriever | None:
    """The retriever that the student searches; None without an index."""
    if settings.index is None:
        return None
    return open_index(settings.index, device=settings.device, rerank=settings.rerank).retriever


def assemble(
    settings: TrainSettings,
    run: OpenRun,
    material: Material,
    student: LoadedModel,
    teacher: LoadedModel | None,
    retriever: Retriever | None,
) -> TrainingResult:
    """Train `student` on `material`. The best weights of an evaluation are kept."""
    computed_in = str(compute_dtype(student.model)).removeprefix("torch.")
    run.folder.note(deviations=deviations(asdict(settings)), computed_in=computed_in)
    codec = Codec(student.tokenizer, text_of(run.folder, student.tokenizer, material.text(student)))
    if world().first:  # its episodes can be read while it trains, before there are best weights
        keep_tokenizer(run.folder.path, student.tokenizer)
    steps, eval_every, save_every = settings.counts(material.steps_per_pass)
    learner = make_learner(settings, material.objective, codec, student, teacher, steps)
    rollout = _fitted(settings, run, material, learner) if settings.fit else settings.rollout
    agent = None
    if retriever is not None:
        agent = Agent.of(student.model, codec, retriever, rollout, seed=settings.seed, reward=material.reward)
    return run_training(
        run,
        learner,
        material.source(learner, agent, run),
        material.plan(steps, eval_every=eval_every, save_every=save_every),
        evaluate=material.evaluation(learner, agent, run),
        protocol=material.recorded(codec, student),
        guarding=Guarding(Guard(settings.collapse), settings.on_collapse, run.warn),
        episodes=material.kept(codec, run, steps),
    )


def _fitted(settings: TrainSettings, run: OpenRun, material: Material, learner: Learner) -> RolloutSettings:
    """The learner's micro-batch, and the wave of the rollout, as large as the memory allows."""
    rollout = settings.rollout

    def engine(slots: int) -> InProcessEngine:
        return InProcessEngine(learner.student, learner.codec, slots=slots, capacity=rollout.max_tokens)

    found = fit(
        run.folder,
        learner,
        length=material.longest,
        sequences=material.sequences,
        limit_gib=settings.fit_gib,
        engine=engine if material.always_writes else None,
        say=run.say,
    )
    return replace(rollout, wave=found.wave or rollout.wave)
