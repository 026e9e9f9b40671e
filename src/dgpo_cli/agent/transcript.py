"""One episode as text for a person: the model's turns, the observations, the results of each search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dgpo_cli.core.markdown import block, inline
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import SearchCall, StopReason

Decode = Callable[[Sequence[int]], str]

NO_ANSWER = {
    StopReason.MAX_TURNS: "no turns were left",
    StopReason.MAX_TOKENS: "the context is full",
    StopReason.SEARCH_FAILED: "a search failed",
    StopReason.REPEATED_TURN: "the same turn without an action was written again",
    StopReason.LOOP: "the turn went on repeating itself",
}


def parts(trajectory: Trajectory, decode: Decode) -> Iterator[tuple[bool, str]]:
    """(whether the model wrote it, text) in order: prompt, turn, observation, turn, ..."""
    for written, start, stop in trajectory.spans():
        yield written, decode(trajectory.token_ids[start:stop])


def outcome(trajectory: Trajectory) -> str:
    """The answer, or the reason why there is none."""
    if trajectory.answer is not None:
        return trajectory.answer or "(an empty answer)"
    return f"(no answer: {why_none(trajectory)})"


def why_none(trajectory: Trajectory) -> str:
    """Why an episode ended without an answer; what is longer than the longest prompt was not read at all."""
    if trajectory.stop is StopReason.MAX_TOKENS and not any(trajectory.written):
        return "the question is too long"
    return NO_ANSWER.get(trajectory.stop, trajectory.stop.value)


def hits(call: SearchCall) -> list[str]:
    """A line per retrieved passage, or the one line that says why there is none."""
    if call.error is not None:
        return [f"search failed: {call.error}"]
    if not call.hits:
        return ["nothing found"]
    return [f"{hit.rank}. {hit.passage.title} ({hit.score:.2f})" for hit in call.hits]


def markdown(trajectories: Sequence[Trajectory], decode: Decode) -> str:
    """Episodes one after the other; the agent's text stands in code blocks, so that its tags stay visible."""
    lines = []
    for trajectory in trajectories:
        lines += [f"## {inline(trajectory.question.text)}", "", f"**{inline(outcome(trajectory))}**", ""]
        for call in trajectory.searches:
            lines += [f"- searched: {inline(call.query)}", *(f"  - {inline(line)}" for line in hits(call))]
        for written, text in parts(trajectory, decode):
            lines += ["", "The model wrote:" if written else "The model read:", "", block(text.strip("\n"))]
        lines.append("")
    return "\n".join(lines)
