"""A trajectory as a reader sees it: what was written and what was read, step by step, as text."""

from __future__ import annotations

from typing import Any

from dgpo_cli.core.text import contains_answer, f1
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, SearchCall
from dgpo_cli.evaluation.outcome import error_kind
from dgpo_cli.models.codec import Codec
from dgpo_cli.rewards import exact_match


def attempt(trajectory: Trajectory, codec: Codec | None) -> dict[str, Any]:
    """One attempt at a question as JSON. Without a codec it has no steps: nothing else turns tokens into text."""
    score = trajectory.score or exact_match.score(trajectory.question, trajectory)
    answer = trajectory.answer
    return {
        "answer": answer,
        "correct": score.correct,
        "cause": None if score.correct else error_kind(trajectory).value,
        "reward": score.total,
        "parts": dict(score.parts),
        "f1": 0.0 if answer is None else f1(answer, trajectory.question.answers),
        "stop": trajectory.stop.value,
        "invalid": trajectory.invalid_actions,
        "truncated": trajectory.truncated_observations,
        "written": trajectory.num_written,
        "read": len(trajectory.token_ids) - trajectory.num_written,
        "searches": [_search(call, trajectory.question) for call in trajectory.searches],
        "steps": [] if codec is None else steps(trajectory, codec),
    }


def steps(trajectory: Trajectory, codec: Codec) -> list[dict[str, Any]]:
    """Stretches of tokens of one kind, in order: {"kind", "text", "tokens", "search"}.

    kind is prompt, result or correction where the model read, and search, answer or think (no action) where it wrote;
    `search` is the place among the trajectory's searches of the call that the stretch made, else None.
    """
    turns = iter(codec.with_turns(trajectory).known_turns)
    found: list[dict[str, Any]] = []
    made = 0
    for written, start, stop in trajectory.spans():
        search = None
        kind: str
        if written:
            kind = next(turns).action or "think"
            if kind == "search" and made < len(trajectory.searches):
                search, made = made, made + 1
        elif not found:
            kind = "prompt"
        else:
            kind = "result" if found[-1]["search"] is not None else "correction"
        text = codec.decode(trajectory.token_ids[start:stop])
        found.append({"kind": kind, "text": text, "tokens": stop - start, "search": search})
    return found


def _search(call: SearchCall, question: Question) -> dict[str, Any]:
    return {
        "query": call.query,
        "error": call.error,
        "seconds": call.seconds,
        "hits": [
            {
                "id": hit.passage.id,
                "title": hit.passage.title,
                "score": hit.score,
                "gold": question.key_of(hit.passage) in question.gold_keys,
                "answer": contains_answer(hit.passage.contents, question.answers),
            }
            for hit in call.hits
        ],
    }
