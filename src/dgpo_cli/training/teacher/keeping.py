"""The choice of episodes to learn from, and of questions that a teacher with the supporting passages can answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dgpo_cli.core.records import read_records
from dgpo_cli.core.text import contains_answer, text_key
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Passage, Question, StopReason, question_from_json
from dgpo_cli.errors import InputError
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.training.teacher import gold

if TYPE_CHECKING:
    from dgpo_cli.models.codec import Codec

Keep = Literal["correct", "searched", "all"]
_log = logging.getLogger(__name__)


def kept(trajectory: Trajectory, keep: Keep, codec: Codec, *, always_search: bool = False) -> bool:
    """Whether an episode is learned from: all, the right ones, or those that are right and read their answer.

    Read is what was shown, so an answer behind the cut of an observation is not. Yes and no stand in no passage: there
    all supporting passages must have been found, or some passage where they are not known. An unanswerable question
    needs a search that found something. With `always_search` an
    episode without results is dropped whatever `keep` says.
    """
    searched = any(call.hits for call in trajectory.searches)
    if always_search and not searched:
        return False
    if keep == "all":
        return True
    right = trajectory.score is not None and trajectory.score.correct
    if keep == "correct" or not right:
        return right
    question = trajectory.question
    if is_unanswerable(question):
        return searched
    if question.is_judged:
        found = {question.key_of(hit.passage) for call in trajectory.searches for hit in call.hits}
        return searched and question.gold_keys <= found
    start = trajectory.written.index(True)
    shown = [
        t for t, written in zip(trajectory.token_ids[start:], trajectory.written[start:], strict=True) if not written
    ]
    return searched and contains_answer(codec.decode(shown), question.answers)


def supported(questions: Sequence[Question]) -> list[Question]:
    """The questions that name supporting passages by title; the others are counted. InputError if none does."""
    named = [question for question in questions if question.supporting_titles]
    if not named:
        raise InputError(
            f"none of {len(questions)} questions names its supporting passages (supporting_titles), "
            f"first {questions[0].key}",
            hint="--teacher gold needs them: take questions that have them, or another teacher",
        )
    if len(named) < len(questions):
        _log.warning(
            "%d of %d questions name no supporting passages and are left out",
            len(questions) - len(named),
            len(questions),
        )
    return named


def require_found(episodes: int, num_kept: int, folder: Path) -> None:
    """Warns of titles that were searched for in vain; InputError where nothing was kept, saying why."""
    _, rows = read_records(folder / "episodes.jsonl", "trajectories")
    vain: list[str] = []  # per question, the first title that was searched for in vain
    hidden: list[str] = []  # or else the first that neither the question nor what was read suggests
    cut = 0
    for _, row in rows:
        cut += row["stop"] == StopReason.MAX_TOKENS
        question = question_from_json(row["question"])
        found = {text_key(Passage(h["id"], h["contents"]).title) for call in row["searches"] for h in call["hits"]}
        asked = {call["query"] for call in row["searches"]}
        missed = [title for title in question.supporting_titles if text_key(title) not in found]
        searched = [title for title in missed if gold.query(title) in asked]
        if missed:
            (vain if searched else hidden).append(f"{(searched or missed)[0]!r} of {question.key}")
    if num_kept == 0 and cut == episodes:
        raise InputError(
            f"nothing is kept: every one of {cut} episodes ran out of room",
            hint="give larger -o rollout.max_prompt_tokens, rollout.max_new_tokens and rollout.max_tokens",
        )
    said = []
    if vain:
        said.append(
            f"{len(vain)} of {episodes} questions name passages that are not found by their titles, first {vain[0]}"
        )
    if hidden:
        said.append(
            f"{len(hidden)} of {episodes} name passages that neither they nor what was read suggests, first {hidden[0]}"
        )
    if said and num_kept == 0:
        raise InputError(
            f"nothing is kept: {'; '.join(said)}", hint="give --index of the corpus that the questions are about"
        )
    if said:
        _log.warning("%s", "; ".join(said))
