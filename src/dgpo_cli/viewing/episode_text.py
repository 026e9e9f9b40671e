"""A trajectory as a reader sees it: what was written and what was read, step by step, as text."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.text import contains_answer, f1
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, SearchCall
from dgpo_cli.evaluation.outcome import error_kind
from dgpo_cli.rewards import exact_match

if TYPE_CHECKING:
    from dgpo_cli.models.codec import Codec

Tokens = Mapping[str, Sequence[float | None]]


def attempt(trajectory: Trajectory, codec: Codec | None, tokens: Tokens) -> dict[str, Any]:
    """One attempt at a question as JSON. Without a codec it has no steps: nothing else turns tokens into text.

    `tokens` is what is known of each token, by name.
    """
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
        "steps": [] if codec is None else steps(trajectory, codec, tokens),
    }


def steps(trajectory: Trajectory, codec: Codec, tokens: Tokens) -> list[dict[str, Any]]:
    """Stretches of tokens of one kind, in order: {"kind", "text", "tokens", "search"}.

    One that the model wrote and whose tokens something is known of has the text of each (`pieces`) and its `values`.

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
        ids = trajectory.token_ids[start:stop]
        step = {"kind": kind, "text": codec.decode(ids), "tokens": stop - start, "search": search}
        if written and tokens:
            step["pieces"] = pieces(ids, codec)
            step["values"] = {name: list(values[start:stop]) for name, values in tokens.items()}
        found.append(step)
    return found


def pieces(ids: Sequence[int], codec: Codec) -> list[str]:
    """The text of each token; a character of several tokens stands at the last of them. Joined they are the text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(codec.token_bytes(token)) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.decode(b"", final=True)]


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
