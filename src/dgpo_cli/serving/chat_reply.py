"""The events of an episode in OpenAI's protocol: parts of a message, and the message as a whole.

Thoughts and searches are `reasoning_content`, the answer is `content`. The answer is one piece, sent when its turn has
ended: until then nobody knows that it is one, for a turn that began with an answer may still become a search. Each
search stands beside it as an entry of `searches`, first with its query and then with its passages; the passages in
which the answer stands are `annotations`. Both are lists whose entries have an `index`, as clients that put streamed
lists together expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any
from urllib.parse import quote

from dgpo_cli.agent import events, transcript
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, SearchCall, StopReason
from dgpo_cli.formats.stream import Piece, TagStream
from dgpo_cli.models.codec import Codec
from dgpo_cli.retrieval.evidence import all_evidence
from dgpo_cli.serving.door import ReplyRefused
from dgpo_cli.serving.passages import shown_passage

Delta = dict[str, Any]


class Narration:
    """Of one episode. `message` holds all that was told so far."""

    def __init__(self, stream: TagStream) -> None:
        self._stream = stream
        self._outside = ""  # what may be the answer, or nothing of the sort
        self._blank = ""  # between tags, or within a text that stands outside of them
        self._searches: list[dict[str, Any]] = []
        self._reasoning: list[str] = []
        self.message: dict[str, Any] = {"role": "assistant", "content": ""}

    def tell(self, event: events.Event) -> list[Delta]:
        """What a client hears of it. Raises ReplyRefused where the episode ended by an error."""
        if isinstance(event, events.TokenText):
            return self._thought(self._written(self._stream.feed(event.text)))
        if isinstance(event, events.SearchStarted):
            begun = {"index": len(self._searches), "query": event.query}
            self._searches.append(begun)
            return self._end_turn() + self._searched(begun, f"Search: {event.query}\n")
        if isinstance(event, events.SearchDone):
            number = len(self._searches) - 1
            found = {"index": number} | _found(event.call)
            self._searches[number] |= found
            return self._searched(found, f"{_summary(event.call)}\n")
        if isinstance(event, events.Correction):
            return self._end_turn() + self._thought("(that step had no action, and the model was told so)\n")
        return self._end(event.trajectory)

    def _end(self, trajectory: Trajectory) -> list[Delta]:
        if trajectory.stop is StopReason.SEARCH_FAILED:
            raise ReplyRefused(502, f"the search failed: {trajectory.failed_search}", code="search_failed")
        if trajectory.answer is None:
            return self._end_turn() + self._thought(f"{transcript.outcome(trajectory)}\n")
        told = {"content": trajectory.answer, "annotations": citations(trajectory)}
        self.message |= told
        return [told]

    def _written(self, pieces: list[Piece]) -> str:
        """The part of a turn that is a thought. A query is told when it is asked, an answer when it is one."""
        thought = ""
        for piece in pieces:
            if piece.kind == "answer" and not piece.is_tag:
                self._outside += piece.text
            elif not piece.is_tag and piece.kind is None and not piece.text.strip():
                self._blank += piece.text
                continue
            elif not piece.is_tag and piece.kind in ("think", None):
                thought += self._blank + piece.text
            elif piece.closes and piece.kind == "think":
                thought += "\n"
            self._blank = ""
        return thought

    def _end_turn(self) -> list[Delta]:
        """A turn is over that did not answer: what stood outside its tags was said all the same."""
        rest = self._written(self._stream.flush()) + self._outside
        self._outside = self._blank = ""
        return self._thought(f"{rest.strip()}\n" if rest.strip() else "")

    def _thought(self, text: str) -> list[Delta]:
        if not text.strip() and (not text or not self._reasoning or self._reasoning[-1].endswith("\n")):
            return []
        if not self._reasoning or self._reasoning[-1].endswith("\n"):
            text = text.lstrip()
        self._reasoning.append(text)
        self.message["reasoning_content"] = "".join(self._reasoning)
        return [{"reasoning_content": text}]

    def _searched(self, entry: dict[str, Any], text: str) -> list[Delta]:
        self.message["searches"] = self._searches
        before = [] if not self._reasoning or self._reasoning[-1].endswith("\n") else self._thought("\n")
        (said,) = self._thought(text)
        return [*before, said | {"searches": [entry]}]


def citations(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The passages that hold the answer, as citations of the whole of it; a passage has an id and no address."""
    places = [(number, hit) for number, call in enumerate(trajectory.searches) for hit in call.hits]
    made = []
    for index, found in enumerate(all_evidence(trajectory.answer, trajectory.searches)):
        search, hit = places[found.place]
        url = f"urn:dgpo:passage:{quote(hit.passage.id, safe='', errors='replace')}"
        whole = {"start_index": 0, "end_index": len(trajectory.answer or "")}
        cited = whole | {"title": hit.passage.title, "url": url}
        passage = _ranked(hit) | {"search": search, "sentence": found.sentence}
        made.append({"index": index, "type": "url_citation", "url_citation": cited, "passage": passage})
    return made


def usage(trajectory: Trajectory, codec: Codec) -> dict[str, int | dict[str, int]]:
    """Tokens read (prompt, passages, corrections) and written; all of these but the answer's own are reasoning."""
    written = trajectory.num_written
    return {
        "prompt_tokens": len(trajectory.token_ids) - written,
        "completion_tokens": written,
        "total_tokens": len(trajectory.token_ids),
        "completion_tokens_details": {"reasoning_tokens": written - _answer_tokens(trajectory, codec)},
    }


def _answer_tokens(trajectory: Trajectory, codec: Codec) -> int:
    """Tokens that hold a byte of the answer, among those of the turn that gave it."""
    if not trajectory.answer:
        return 0
    turn = trajectory.known_turns[-1]
    pieces = [codec.token_bytes(token) for token in trajectory.token_ids[turn.start : turn.stop]]
    ends = [*accumulate(map(len, pieces))]
    answer = trajectory.answer.encode()
    start = b"".join(pieces).rfind(answer)
    stop = start + len(answer)
    return sum(start < end and end - len(piece) < stop for piece, end in zip(pieces, ends, strict=True))


def finish_reason(trajectory: Trajectory) -> str:
    """ "stop" for an answer, "length" for an episode that a limit or a loop ended before."""
    return "stop" if trajectory.stop is StopReason.ANSWERED else "length"


def problem(error: ReplyRefused) -> Mapping[str, Any]:
    """The protocol's form of an error."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = "authentication_error" if error.status == 401 else kind
    return {"error": {"message": error.cause, "type": kind, "param": error.param, "code": error.code}}


def _found(call: SearchCall) -> dict[str, Any]:
    found: dict[str, Any] = {"passages": [_ranked(hit) for hit in call.hits], "seconds": round(call.seconds, 4)}
    return found if call.error is None else found | {"error": call.error}


def _ranked(hit: Hit) -> dict[str, str | float]:
    return shown_passage(hit) | {"rank": hit.rank}


def _summary(call: SearchCall) -> str:
    if call.error is not None or not call.hits:
        return transcript.hits(call)[0]
    return f"Found: {' · '.join(' '.join(hit.passage.title.split())[:100] for hit in call.hits)}"
