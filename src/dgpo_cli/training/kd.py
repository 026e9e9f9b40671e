"""Cold start: a student learns from trajectories that the teacher wrote."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.progress import Progress, Say, Steps
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question
from dgpo_cli.engine.in_process.engine import Blend
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.lm_head import hidden_states, token_logprobs
from dgpo_cli.models.load import LoadedModel
from dgpo_cli.objectives.base import Objective
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.rewards.registry import Reward
from dgpo_cli.training.assemble import assemble, load_models, load_retriever
from dgpo_cli.training.batch import Sample, micro_batches, pack
from dgpo_cli.training.ingredients import kd_objective, searches
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.loop import Plan
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.lifecycle import TrainingResult, begin_with, smaller_next_time
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.run.progress_line import glimpses
from dgpo_cli.training.run.validation import evaluator, team
from dgpo_cli.training.settings import KDSettings
from dgpo_cli.training.sizes.jobs import Sizes, with_sizes
from dgpo_cli.training.source import Mixture, Roll, Source, TeacherTrajectories
from dgpo_cli.training.teacher.trajectory_files import TrajectorySet, read_trajectories


def run_kd(
    settings: KDSettings,
    run: RunDir,
    *,
    keep: int,
    progress: Progress | None,
    warn: Say | None = None,
    say: Say | None = None,
    show: Say | None = None,
    sizes: Sizes | None = None,
) -> TrainingResult:
    """Load what the settings name, and train; `show` is called with a student's episode now and then.

    `sizes` are those that the check before fitted to the memory.
    """
    opened = OpenRun(run, keep, Steps(progress), warn, say, show)
    settings = with_sizes(settings, begin_with(run, sizes or {}, say))
    data = read_trajectories(Path(settings.trajectories))
    questions = () if settings.eval_data is None else read_questions(Path(settings.eval_data))[: settings.eval_limit]
    material = Trajectories.of(settings, data, questions)
    student, teacher = load_models(settings, material.objective)
    _require_tokens_of(data, student)
    with smaller_next_time(run, settings):
        return assemble(settings, opened, material, student, teacher, load_retriever(settings))


def _require_tokens_of(data: TrajectorySet, student: LoadedModel) -> None:
    if data.tokenizer not in (None, Codec(student.tokenizer, student.protocol).digest):
        raise InputError(
            f"{data.path} holds tokens of another tokenizer than the one of {student.source.name}",
            hint="train a student of the teacher's family, or make new data: `dgpo distill-data`",
        )


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Stored trajectories, of which the student writes a share itself where the method asks for it.

    Validation is the mean negative log-likelihood of held-out trajectories (split by question); with questions, EM in
    the search loop decides which weights are the best.
    """

    settings: KDSettings
    objective: Objective
    protocol: Protocol
    stored: TeacherTrajectories
    validation: Sequence[Trajectory]
    questions: Sequence[Question] = ()
    reward: Reward | None = None

    @classmethod
    def of(cls, settings: KDSettings, data: TrajectorySet, questions: Sequence[Question] = ()) -> Trajectories:
        """Raises ConfigError for a method of another kind, and where there is nothing to train on."""
        training, validation = split(data.trajectories, settings.validation_share, settings.seed)
        stored = TeacherTrajectories(training, settings.batch_size, settings.seed)
        return cls(settings, kd_objective(settings), Protocol.from_json(data.protocol), stored, validation, questions)

    def text(self, student: LoadedModel) -> Protocol:
        return self.protocol

    def recorded(self, codec: Codec, student: LoadedModel) -> Protocol:
        return codec.protocol

    @property
    def steps_per_pass(self) -> int:
        return self.stored.steps_per_epoch

    @property
    def longest(self) -> int:
        stored = max(len(trajectory.token_ids) for trajectory in self.stored.trajectories)
        return max(stored, self.settings.rollout.max_tokens) if searches(self.objective) else stored

    @property
    def sequences(self) -> int:
        return self.settings.batch_size

    @property
    def always_writes(self) -> bool:
        return False

    def plan(self, steps: int, *, eval_every: int, save_every: int) -> Plan:
        seed, seconds = self.settings.seed, self.settings.seconds
        return Plan(steps, eval_every=eval_every, save_every=save_every, seed=seed, seconds=seconds)

    def source(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Source:
        """Raises ConfigError where the student is to write and there is nothing to search."""
        if not searches(self.objective):
            return self.stored
        if agent is None:
            raise ConfigError(
                f"method {self.settings.method!r} searches while it trains, and there is no index", hint="give --index"
            )
        learner.temperature = self.settings.rollout.temperature or 1.0  # at which greedy episodes are told, too
        progress = run.progress.inside("episodes")
        roll = team(_writer(learner, agent), learner.world, progress)
        if run.show is not None:
            roll = glimpses(roll, run.show)
        roll_teacher: Roll | None = None
        if self.objective.teacher_writes:
            assert learner.teacher is not None
            teacher = Agent.of(learner.teacher, learner.codec, agent.retriever, agent.settings, seed=agent.seed)
            roll_teacher = team(teacher, learner.world, progress)
        return Mixture(self.stored, self.objective, roll=roll, roll_teacher=roll_teacher, replay=learner.replay)

    def evaluation(self, learner: Learner, agent: Agent | None, run: OpenRun) -> Callable[[], Mapping[str, float]]:
        """The loss of held-out trajectories, and EM on the questions; the score is EM with questions, else -loss."""
        em = None
        if agent is not None and self.questions:
            em = evaluator(
                agent,
                self.questions,
                folder=run.folder.path,
                world=learner.world,
                model=learner.student,
                progress=run.progress.inside("validation questions"),
            )

        def evaluate() -> Mapping[str, float]:
            loss = nll(learner, self.validation, run.progress.inside("validation loss"))
            metrics = {} if loss is None else {"nll": loss}
            if em is not None:
                return metrics | dict(em())
            return metrics | ({"score": -metrics["nll"]} if metrics else {})

        return evaluate

    def kept(self, codec: Codec, run: OpenRun, steps: int) -> KeptEpisodes | None:
        return None


def _writer(learner: Learner, agent: Agent) -> Agent:
    """Who writes in the student's place: the student, or a blend of its distribution and the teacher's."""
    share = learner.objective.sampled_from_teacher
    if not share:
        return agent
    assert learner.teacher is not None
    blend = Blend(learner.teacher, share)
    return Agent.of(learner.student, learner.codec, agent.retriever, agent.settings, seed=agent.seed, blend=blend)


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
