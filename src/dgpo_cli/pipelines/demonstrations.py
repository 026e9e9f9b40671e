"""Scripted episodes of the offline world, played through the same search loop as every other episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import Question
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.models.codec import Codec
from dgpo_cli.pipelines.agents import grade
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.rollout.loop import run_episodes
from dgpo_cli.rollout.settings import RolloutSettings
from dgpo_cli.tinyworld.demonstrations import Demonstrator, passages_in


def write_demonstrations(
    demonstrator: Demonstrator,
    questions: Sequence[Question],
    file: Path,
    *,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
) -> None:
    """A trajectory file with one scripted episode per question, faulty ones included."""
    by_prompt = {codec.protocol.render_prompt(question.text)[0]: question for question in questions}

    def script(prompt: str, read: Sequence[str]) -> str:
        return demonstrator.turn(by_prompt[prompt], [passages_in(observation) for observation in read])

    engine = ScriptedEngine(codec, script)
    pairs = [(question, 0) for question in questions]
    episodes = run_episodes(pairs, engine=engine, codec=codec, retriever=retriever, settings=settings)
    meta = {"protocol": codec.protocol.to_json(), "settings": settings.to_json()}
    header = {"schema": "trajectories", "version": 1} | meta
    write_jsonl_atomic(file, [header, *({"key": t.key} | t.to_json() for t in map(grade, episodes))])
