"""Files of scripted trajectories, from which the models of the offline world learn before distillation.

Demonstrations go through the same search loop as every other episode; the teacher learns to search from them. Reading
exercises give one-hop questions together with their search results: a student that learned from them alone can read,
as a pretrained language model can, and has never seen a search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo_cli.agent.agent import grade
from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.trajectory import Trajectory, write_trajectories
from dgpo_cli.core.types import Question, SearchCall, StopReason
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.formats.tags import compact
from dgpo_cli.models.codec import Codec
from dgpo_cli.offline.world.demonstrator import Demonstrator, query
from dgpo_cli.offline.world.world import World
from dgpo_cli.retrieval.base import Retriever


def write_demonstrations(
    demonstrator: Demonstrator,
    questions: Sequence[Question],
    file: Path,
    *,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
    seed: int = 0,
) -> None:
    """A trajectory file with one scripted episode per question, faulty ones included."""
    by_prompt = {codec.protocol.render_prompt(question.text)[0]: question for question in questions}

    def script(prompt: str, read: Sequence[str]) -> str:
        return demonstrator.turn(by_prompt[prompt], [codec.passages_in(observation) for observation in read])

    engine = ScriptedEngine(codec, script)
    pairs = [(question, 0) for question in questions]
    episodes = run_episodes(pairs, engine=engine, codec=codec, retriever=retriever, settings=settings, seed=seed)
    _write(file, episodes, codec, settings.to_json(seed))


def write_reading_exercises(
    world: World,
    questions: Sequence[Question],
    file: Path,
    *,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
    seed: int = 0,
) -> None:
    """A trajectory file of one-hop questions, each with the results of the right search and then its answer."""
    asked = [question for question in questions if question.hops == 1]
    queries = [query(world.hops[question.id][0]) for question in asked]
    results = retriever.search(queries, settings.top_k)
    exercises = []
    for question, text, hits in zip(asked, queries, results, strict=True):
        read = codec.prompt_ids(question.text).ids
        read += codec.observation_ids([hit.passage for hit in hits], settings.max_observation_tokens).ids
        written = tuple(codec.turn_ids(compact("", "answer", question.answers[0])))
        exercise = Trajectory(
            question=question,
            token_ids=read + written,
            written=(False,) * len(read) + (True,) * len(written),
            logprobs=None,
            searches=(SearchCall(text, tuple(hits)),),
            stop=StopReason.ANSWERED,
            answer=question.answers[0],
        )
        exercises.append(codec.with_turns(exercise))
    _write(file, exercises, codec, settings.to_json(seed))


def _write(file: Path, trajectories: Iterable[Trajectory], codec: Codec, settings: Mapping[str, Any]) -> None:
    meta = {"protocol": codec.protocol.to_json(), "settings": settings}
    write_trajectories(file, map(grade, trajectories), meta)
