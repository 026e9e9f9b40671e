"""A model that can be asked questions: engine, codec, retriever and rollout settings put together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from transformers import PreTrainedModel

from dgpo_cli.agent.loop import Listener, finished_episodes, run_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question
from dgpo_cli.engine.base import Engine
from dgpo_cli.engine.in_process.engine import Blend, InProcessEngine
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import LoadedModel
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.rewards import exact_match
from dgpo_cli.rewards.registry import Reward

_log = logging.getLogger(__name__)


class _Means(TypedDict):
    engine: Engine
    codec: Codec
    retriever: Retriever
    settings: RolloutSettings
    seed: int


@dataclass(frozen=True, slots=True)
class Agent:
    engine: Engine
    codec: Codec
    retriever: Retriever
    settings: RolloutSettings
    reward: Reward | None = None  # exact match by default
    seed: int = 0  # of every draw
    at_once: int | None = None  # fewer episodes than a wave, where memory does not hold as many

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        codec: Codec,
        retriever: Retriever,
        settings: RolloutSettings,
        *,
        seed: int = 0,
        blend: Blend | None = None,
        reward: Reward | None = None,
        at_once: int | None = None,
    ) -> Agent:
        """Slots for one wave, or `at_once` of them; the model's parameters are read in place, so training it trains
        the agent.
        """
        slots = settings.wave if at_once is None else min(settings.wave, at_once)
        engine = InProcessEngine(model, codec, slots=slots, capacity=settings.max_tokens, blend=blend)
        return cls(engine, codec, retriever, settings, reward, seed, at_once)

    @classmethod
    def open(cls, loaded: LoadedModel, retriever: Retriever, *, seed: int = 0, **settings: Any) -> Agent:
        """An agent that answers as `dgpo eval` does: greedily, within the limits that the model was trained with.

        `settings` are those of RolloutSettings that differ; `seed` is that of the draws above temperature 0. Warns of a
        model that was never trained to search.
        """
        if loaded.raw is not None:
            _log.warning("%s", loaded.raw)
        codec = Codec(loaded.tokenizer, loaded.protocol)
        chosen = {"temperature": 0.0, "stop_repeats": True} | loaded.protocol.limits | settings
        context = getattr(loaded.model.config, "max_position_embeddings", None)
        rollout = apply_options(RolloutSettings, chosen).in_context(context, chosen)
        return cls.of(loaded.model, codec, retriever, rollout, seed=seed)

    def ask(self, question: str) -> Trajectory:
        """One episode: its answer, the searches made and what they returned."""
        return next(self.run([(Question("1", question, (), "asked"), 0)]))

    def with_settings(self, **changes: float) -> Agent:
        """The same engine under other settings (`wave` cannot grow)."""
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[arg-type]

    def record(self) -> dict[str, Any]:
        """The record, in a file of its episodes, of how they were made."""
        return self.settings.to_json(self.seed)

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
        wave = self.settings.wave if self.at_once is None else min(self.settings.wave, self.at_once)
        return {
            "engine": self.engine,
            "codec": self.codec,
            "retriever": self.retriever,
            "settings": replace(self.settings, wave=wave),
            "seed": self.seed,
        }

    def _graded(self, trajectory: Trajectory) -> Trajectory:
        return grade(trajectory) if self.reward is None else trajectory.with_score(self.reward(trajectory))


def grade(trajectory: Trajectory) -> Trajectory:
    return trajectory.with_score(exact_match.score(trajectory.question, trajectory))
