"""Reinforcement learning of a search agent: rollouts, reward, and a teacher (or reference) that holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.progress import Progress, Say, Steps
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Question
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import LoadedModel
from dgpo_cli.objectives.base import Objective
from dgpo_cli.rewards import registry as rewards
from dgpo_cli.rewards.registry import Reward
from dgpo_cli.training.assemble import assemble, load_models, load_retriever
from dgpo_cli.training.ingredients import (
    common_text,
    episodes_per_step,
    rl_objective,
    training_questions,
    updates_per_step,
)
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.loop import Plan
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.lifecycle import TrainingResult, begin_with, smaller_next_time
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.run.progress_line import glimpses
from dgpo_cli.training.run.validation import evaluator, team
from dgpo_cli.training.settings import RLSettings
from dgpo_cli.training.sizes.jobs import Sizes, with_sizes
from dgpo_cli.training.source import Rollouts, Source, require_batch


def run_rl(
    settings: RLSettings,
    run: RunDir,
    *,
    keep: int,
    progress: Progress | None,
    warn: Say | None = None,
    say: Say | None = None,
    show: Say | None = None,
    sizes: Sizes | None = None,
) -> TrainingResult:
    """Load what the settings name, and train; `show` is called with one of the episodes now and then.

    `sizes` are those that the check before fitted to the memory.
    """
    opened = OpenRun(run, keep, Steps(progress), warn, say, show)
    settings = with_sizes(settings, begin_with(run, sizes or {}, say))
    retriever = load_retriever(settings)
    material = Questions.of(settings, *training_questions(settings))
    if say is not None and settings.mini_batches > material.sequences:
        say(f"mini_batches = {settings.mini_batches} of {material.sequences} episodes a step: one update for each")
    student, teacher = load_models(settings, material.objective)
    if teacher is not None:
        student = with_agent_text(student, teacher)
    with smaller_next_time(run, settings):
        return assemble(settings, opened, material, student, teacher, retriever)


def with_agent_text(student: LoadedModel, teacher: LoadedModel) -> LoadedModel:
    """The student under the agent text of both."""
    own = student.protocol, student.trained_with_protocol
    protocol, _ = common_text(own, (teacher.protocol, teacher.trained_with_protocol))
    return replace(student, protocol=protocol)


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions that the student answers while it trains. EM on those of the validation decides on the best weights."""

    settings: RLSettings
    objective: Objective
    questions: Sequence[Question]
    validation: Sequence[Question]
    reward: Reward | None

    @classmethod
    def of(cls, settings: RLSettings, questions: Sequence[Question], validation: Sequence[Question]) -> Questions:
        """Raises ConfigError for a method of another kind, and for fewer questions than a batch."""
        require_batch(questions, settings.batch_size)
        reward = rewards.weighted(settings.reward) if settings.reward else None
        return cls(settings, rl_objective(settings), questions, validation[: settings.eval_limit], reward)

    def text(self, student: LoadedModel) -> Protocol:
        return student.protocol

    def recorded(self, codec: Codec, student: LoadedModel) -> Protocol:
        trained = student.protocol.with_limits(asdict(self.settings.rollout))
        return trained.reranked_by(self.settings.rerank.model)

    @property
    def steps_per_pass(self) -> int:
        return math.ceil(len(self.questions) / self.settings.batch_size)

    @property
    def longest(self) -> int:
        return self.settings.rollout.max_tokens

    @property
    def samples(self) -> int:
        """Attempts at each question."""
        return self.settings.samples or self.objective.default_samples

    @property
    def sequences(self) -> int:
        return episodes_per_step(self.settings, self.objective)

    @property
    def always_writes(self) -> bool:
        return True

    def plan(self, steps: int, *, eval_every: int, save_every: int) -> Plan:
        return Plan(
            steps,
            mini_batches=updates_per_step(self.settings, self.objective),
            critic_warmup_steps=self.settings.critic_warmup_steps,
            eval_every=eval_every,
            save_every=save_every,
            seed=self.settings.seed,
        )

    def source(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Source:
        assert agent is not None, "rl has an index"
        roll = team(agent, learner.world, run.progress.inside("episodes"))
        return Rollouts(
            self.questions,
            self.settings.batch_size,
            self.settings.seed,
            roll=roll if run.show is None else glimpses(roll, run.show),
            samples=self.samples,
            differing=self.objective.replaces_uninformative,
        )

    def evaluation(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Callable[[], Mapping[str, float]]:
        """Without questions there is no score, and the last weights count as the best."""
        assert agent is not None, "rl has an index"
        if not self.validation:
            return dict
        return evaluator(
            agent,
            self.validation,
            folder=run.folder.path,
            world=learner.world,
            model=learner.student,
            progress=run.progress.inside("validation questions"),
        )

    def kept(self, codec: Codec, run: OpenRun, steps: int) -> KeptEpisodes | None:
        return KeptEpisodes(run.folder.path, codec, each=self.settings.keep_episodes, steps=steps)
