"""A model that can be asked questions: engine, codec, retriever and rollout settings put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile, write_jsonl_atomic
from dgpo_cli.core.types import Question, Trajectory, refuse_broken_search
from dgpo_cli.engine.base import Engine
from dgpo_cli.engine.inprocess import Blend, InProcessEngine
from dgpo_cli.models.codec import Codec
from dgpo_cli.pipelines.settings import RolloutOptions
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.rewards import exact_match
from dgpo_cli.rewards.registry import Reward
from dgpo_cli.rollout.loop import Listener, run_episodes
from dgpo_cli.rollout.settings import RolloutSettings
from dgpo_cli.train.source import Roll
from dgpo_cli.train.world import ALONE, World

VALIDATION_FILE = "validation.jsonl"  # of a training run: episodes of its last periodic evaluation
MAX_KEPT = 200  # ours, episodes in it


@dataclass(frozen=True, slots=True)
class Agent:
    engine: Engine
    codec: Codec
    retriever: Retriever
    settings: RolloutSettings
    reward: Reward | None = None  # exact match by default

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        codec: Codec,
        retriever: Retriever,
        settings: RolloutSettings,
        blend: Blend | None = None,
        reward: Reward | None = None,
    ) -> Agent:
        """Slots for one wave; the model's parameters are read in place, so training it trains the agent."""
        engine = InProcessEngine(model, codec, slots=settings.wave, capacity=settings.max_tokens, blend=blend)
        return cls(engine, codec, retriever, settings, reward)

    def with_settings(self, **changes: float) -> Agent:
        """The same engine under other settings (`wave` cannot grow)."""
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[arg-type]

    def run(
        self,
        questions: Sequence[tuple[Question, int]],
        *,
        on_event: Listener | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Trajectory]:
        """Graded trajectories of (question, sample) pairs, in order."""
        for trajectory in run_episodes(
            questions,
            engine=self.engine,
            codec=self.codec,
            retriever=self.retriever,
            settings=self.settings,
            on_event=on_event,
            progress=progress,
        ):
            yield grade(trajectory) if self.reward is None else self._rewarded(trajectory, self.reward)

    def _rewarded(self, trajectory: Trajectory, reward: Reward) -> Trajectory:
        """Scored by its text after the prompt, observations included."""
        start = trajectory.written.index(True) if trajectory.num_written else len(trajectory.written)
        return trajectory.with_score(reward(trajectory, self.codec.decode(trajectory.token_ids[start:])))


def grade(trajectory: Trajectory) -> Trajectory:
    return trajectory.with_score(exact_match.score(trajectory.question, trajectory))


def team(agent: Agent, world: World) -> Roll:
    """Episodes of (question, sample) pairs in order; each process of `world` runs a share, and all get every one.

    Shares are balanced by the tokens of the question's last episode; one without counts as the mean. An episode's draws
    depend on its seed and key, so it is the same whoever runs it.
    """
    tokens: dict[str, int] = {}

    def roll(pairs: Sequence[tuple[Question, int]]) -> list[Trajectory]:
        if world.size == 1:
            return list(agent.run(pairs))
        known = [tokens.get(_name(question)) for question, _ in pairs]
        mean = sum(n for n in known if n is not None) / max(1, sum(n is not None for n in known)) or 1.0
        shares = world.shares([mean if n is None else n for n in known])
        own = [trajectory.to_json() for trajectory in agent.run([pairs[i] for i in shares[world.rank]])]
        made: dict[int, Trajectory] = {}
        for share, records in zip(shares, world.gather(own), strict=True):
            made |= zip(share, map(Trajectory.from_json, records), strict=True)
        tokens.update((_name(t.question), len(t.token_ids)) for t in made.values())
        return [made[i] for i in range(len(pairs))]

    return roll


def _name(question: Question) -> str:
    return f"{question.qa_set}/{question.id}"


def evaluator(
    agent: Agent, questions: Sequence[Question], *, folder: Path | None = None, world: World = ALONE
) -> Callable[[], Mapping[str, float]]:
    """An evaluation for the training loop: greedy EM on validation questions, as "score" too.

    The processes of `world` share the questions, as they share rollouts: nobody waits for the first one to answer all.
    The first `MAX_KEPT` episodes of the last one stay in `folder`, to be looked at with `dgpo report`.
    It raises RetrievalError when so many searches failed that the score would tell of the retriever, not of the model.
    """
    greedy = agent.with_settings(temperature=0.0)
    roll = team(greedy, world)

    def evaluate() -> Mapping[str, float]:
        trajectories = roll([(question, 0) for question in questions])
        if folder is not None and world.first:
            _keep(greedy, trajectories[:MAX_KEPT], folder / VALIDATION_FILE)
        count = max(1, len(trajectories))
        refuse_broken_search([cause for t in trajectories if (cause := t.failed_search) is not None], count)
        em = sum(t.score.correct for t in trajectories if t.score is not None) / count
        return {
            "em": em,
            "searches": sum(len(t.searches) for t in trajectories) / count,
            "score": em,
        }

    return evaluate


def _keep(agent: Agent, trajectories: Sequence[Trajectory], file: Path) -> None:
    header = {"schema": "evaluation", "version": RecordFile.version, "protocol": agent.codec.protocol.to_json()}
    kept = sorted((replace(t, logprobs=None) for t in trajectories), key=lambda t: t.key)
    write_jsonl_atomic(file, [header, *({"key": t.key} | t.to_json() for t in kept)])


def rollout_settings(options: RolloutOptions, seed: int) -> RolloutSettings:
    return RolloutSettings(**asdict(options), seed=seed)
