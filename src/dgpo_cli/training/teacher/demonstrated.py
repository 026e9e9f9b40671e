"""Demonstrations from a file: which of them can be played within the limits of an episode, and which were not kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.agent.transcript import NO_ANSWER
from dgpo_cli.core.records import read_records
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import StopReason
from dgpo_cli.errors import InputError
from dgpo_cli.models.codec import Codec
from dgpo_cli.qa_sets.demonstrations import Demonstration
from dgpo_cli.training.teacher.trajectory_files import read_trajectories

_log = logging.getLogger(__name__)


def playable(
    path: Path, demonstrations: Sequence[Demonstration], codec: Codec, rollout: RolloutSettings
) -> list[Demonstration]:
    """Those whose turns the search loop lets through as they are written; the others are counted, the first by line.

    A turn that is cut has no action, and one that searches too often no answer: the model would learn that. Raises
    InputError where none is left.
    """
    wrong = {entry.line: told for entry in demonstrations if (told := _too_much(entry, codec, rollout))}
    if not wrong:
        return list(demonstrations)
    line, (what, option) = next(iter(wrong.items()))
    if len(wrong) == len(demonstrations):
        raise InputError(f"{path}:{line}: {what}, and no other demonstration fits", hint=f"give -o {option} or more")
    _log.warning(
        "%s: %d of %d demonstrations do not fit into an episode and are left out, the first on line %d: %s (-o %s)",
        path, len(wrong), len(demonstrations), line, what, option,
    )  # fmt: skip
    return [entry for entry in demonstrations if entry.line not in wrong]


def _too_much(entry: Demonstration, codec: Codec, rollout: RolloutSettings) -> tuple[str, str] | None:
    """What of a demonstration is beyond the settings, and the setting that would hold it."""
    searches = len(entry.steps) - 1
    if searches > rollout.max_turns:
        return f"it searches {searches} times, and max_turns = {rollout.max_turns}", f"rollout.max_turns={searches}"
    for number, step in enumerate(entry.steps, start=1):
        text = codec.format.write(step.think, step.action, step.content)
        # A token is at least a byte: most turns need not be cut into tokens.
        short = len(text.encode(errors="surrogatepass")) < rollout.max_new_tokens
        tokens = 0 if short else len(codec.turn_ids(text))
        if tokens > rollout.max_new_tokens:
            what = f"step {number} has {tokens} tokens, and max_new_tokens = {rollout.max_new_tokens}"
            return what, f"rollout.max_new_tokens={tokens}"
    return None


def require_shown(path: Path, demonstrations: Sequence[Demonstration], folder: Path) -> None:
    """Warns of demonstrations that were not kept, saying why; InputError where none was."""
    lines = {entry.question.key: entry.line for entry in demonstrations}
    _, rows = read_records(folder / "episodes.jsonl", "trajectories")
    played = {t.question.key: t for t in (Trajectory.from_json(row) for _, row in rows) if t.question.key in lines}
    kept = {t.question.key for t in read_trajectories(folder).trajectories}
    found: dict[str, list[int]] = {}
    for key, trajectory in played.items():
        if key not in kept:
            found.setdefault(_why(trajectory), []).append(lines[key])
    if not found:
        return
    told = f"{path}: {sum(map(len, found.values()))} of {len(played)} demonstrations are not kept: {_listed(found)}"
    if not kept:
        hint = "mend them, or give the index that they were made with"
        full = NO_ANSWER[StopReason.MAX_TOKENS] in found
        raise InputError(told, hint="give a larger -o rollout.max_tokens, or shorter ones" if full else hint)
    _log.warning("%s", told)


def _why(trajectory: Trajectory) -> str:
    if trajectory.stop is not StopReason.ANSWERED:
        return NO_ANSWER.get(trajectory.stop, trajectory.stop.value)
    if trajectory.score is None or not trajectory.score.correct:
        return "the answer is none of golden_answers"
    if not any(call.hits for call in trajectory.searches):
        return "no search found anything"
    return "supporting passages were not found" if trajectory.question.is_judged else "the answer was not read"


def _listed(found: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{why} ({len(lines)}, first on line {min(lines)})" for why, lines in found.items())
