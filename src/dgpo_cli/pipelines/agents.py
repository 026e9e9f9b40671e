"""A model that can be asked questions: engine, codec, retriever and rollout settings put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import PreTrainedModel

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile, as_read, read_jsonl, write_jsonl_atomic
from dgpo_cli.core.types import Question, Trajectory, attempt_key, refuse_broken_search
from dgpo_cli.engine.base import Engine
from dgpo_cli.engine.inprocess import Blend, InProcessEngine
from dgpo_cli.models.codec import Codec
from dgpo_cli.pipelines.settings import RolloutOptions
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.rewards import exact_match
from dgpo_cli.rewards.registry import Reward
from dgpo_cli.rollout.loop import Listener, finished_episodes, run_episodes
from dgpo_cli.rollout.settings import RolloutSettings
from dgpo_cli.train.source import Roll
from dgpo_cli.train.world import ALONE, World

VALIDATION_FILE = "validation.jsonl"  # of a training run: episodes of its last periodic evaluation
UNFINISHED_FILE = "validation.unfinished.jsonl"  # of one that is at work, or was interrupted
MAX_KEPT = 200  # ours, episodes in it


class _Means(TypedDict):
    engine: Engine
    codec: Codec
    retriever: Retriever
    settings: RolloutSettings


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
        return map(self._graded, run_episodes(questions, on_event=on_event, progress=progress, **self._means()))

    def finished(
        self, questions: Sequence[tuple[Question, int]], /, *, progress: Progress | None = None
    ) -> Iterator[Trajectory]:
        """Graded trajectories of (question, sample) pairs, each as soon as it is finished."""
        return map(self._graded, finished_episodes(questions, progress=progress, **self._means()))

    def _means(self) -> _Means:
        return {
            "engine": self.engine,
            "codec": self.codec,
            "retriever": self.retriever,
            "settings": self.settings,
        }

    def _graded(self, trajectory: Trajectory) -> Trajectory:
        return grade(trajectory) if self.reward is None else self._rewarded(trajectory, self.reward)

    def _rewarded(self, trajectory: Trajectory, reward: Reward) -> Trajectory:
        """Scored by its text after the prompt, observations included."""
        start = trajectory.written.index(True) if trajectory.num_written else len(trajectory.written)
        return trajectory.with_score(reward(trajectory, self.codec.decode(trajectory.token_ids[start:])))


def grade(trajectory: Trajectory) -> Trajectory:
    return trajectory.with_score(exact_match.score(trajectory.question, trajectory))


def team(agent: Agent, world: World, progress: Progress | None = None) -> Roll:
    """Episodes of (question, sample) pairs in order; each process of `world` runs a share, and all get every one.

    `progress` is told of the share of this process.

    Shares are balanced by the tokens of the question's last episode; one without counts as the mean. An episode's draws
    depend on its seed and key, so it is the same whoever runs it.
    """
    tokens: dict[str, int] = {}

    def roll(pairs: Sequence[tuple[Question, int]]) -> list[Trajectory]:
        if world.size == 1:
            return list(agent.run(pairs, progress=progress))
        known = [tokens.get(_name(question)) for question, _ in pairs]
        mean = sum(n for n in known if n is not None) / max(1, sum(n is not None for n in known)) or 1.0
        shares = world.shares([mean if n is None else n for n in known])
        own = [t.to_json() for t in agent.run([pairs[i] for i in shares[world.rank]], progress=progress)]
        made: dict[int, Trajectory] = {}
        for share, records in zip(shares, world.gather(own), strict=True):
            made |= zip(share, map(Trajectory.from_json, records), strict=True)
        tokens.update((_name(t.question), len(t.token_ids)) for t in made.values())
        return [made[i] for i in range(len(pairs))]

    return roll


def _name(question: Question) -> str:
    return f"{question.qa_set}/{question.id}"


def evaluator(
    agent: Agent,
    questions: Sequence[Question],
    *,
    folder: Path | None = None,
    world: World = ALONE,
    model: torch.nn.Module | None = None,
    progress: Progress | None = None,
) -> Callable[[], Mapping[str, float]]:
    """An evaluation for the training loop: greedy EM on validation questions, as "score" too.

    The processes of `world` share the questions, as they share rollouts: nobody waits for the first one to answer all.
    The first `MAX_KEPT` episodes of the last one stay in `folder`, to be looked at with `dgpo report`. With `model`,
    whose weights the agent has, an episode is on disk as soon as it is finished: a run that is killed and comes back to
    the same weights goes on from there.
    It raises RetrievalError when so many searches failed that the score would tell of the retriever, not of the model.
    """
    greedy = agent.with_settings(temperature=0.0)
    roll = team(greedy, world, progress)
    if folder is not None and model is not None and world.size == 1:
        roll = partial(_recorded_roll, greedy, model, folder / UNFINISHED_FILE, progress)

    def evaluate() -> Mapping[str, float]:
        trajectories = roll([(question, 0) for question in questions])
        count = max(1, len(trajectories))
        refuse_broken_search([cause for t in trajectories if (cause := t.failed_search) is not None], count)
        if folder is not None and world.first:
            header = _evaluation_header(greedy)
            kept = sorted((replace(t, logprobs=None) for t in trajectories[:MAX_KEPT]), key=lambda t: t.key)
            write_jsonl_atomic(folder / VALIDATION_FILE, [header, *({"key": t.key} | t.to_json() for t in kept)])
            (folder / UNFINISHED_FILE).unlink(missing_ok=True)
        em = sum(t.score.correct for t in trajectories if t.score is not None) / count
        return {
            "em": em,
            "searches": sum(len(t.searches) for t in trajectories) / count,
            "score": em,
        }

    return evaluate


def _evaluation_header(agent: Agent) -> dict[str, Any]:
    return {"schema": "evaluation", "version": RecordFile.version, "protocol": agent.codec.protocol.to_json()}


def _recorded_roll(
    agent: Agent,
    model: torch.nn.Module,
    file: Path,
    progress: Progress | None,
    pairs: Sequence[tuple[Question, int]],
) -> list[Trajectory]:
    """Episodes in order, each in `file` as soon as it is finished; those that are there of these weights are taken."""
    meta = {"settings": agent.settings.to_json(), "weights": parameters_digest(model)}
    if file.exists() and next(read_jsonl(file), (0, {}))[1] != as_read(
        {"schema": "unfinished validation", "version": RecordFile.version} | meta
    ):
        file.unlink()
    with RecordFile(file, key="key", schema="unfinished validation", meta=meta) as records:
        made = {t.key: t for t in records.made(Trajectory.from_json)}
        missing = [pair for pair in pairs if attempt_key(*pair) not in made]
        before = len(pairs) - len(missing)

        def tell(done: int, _: int, /, note: str = "") -> None:
            if progress is not None:
                progress(before + done, len(pairs), note)

        for trajectory in agent.finished(missing, progress=tell):
            made[trajectory.key] = replace(trajectory, logprobs=None)
            if trajectory.failed_search is None:
                records.append({"key": trajectory.key} | made[trajectory.key].to_json())
    return [made[attempt_key(*pair)] for pair in pairs]


def parameters_digest(model: torch.nn.Module) -> str:
    """Of all weights as they are at this moment: the same digest, bit by bit the same weights."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]


def rollout_settings(options: RolloutOptions, seed: int) -> RolloutSettings:
    return RolloutSettings(**asdict(options), seed=seed)
