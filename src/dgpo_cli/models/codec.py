"""Agent text to token ids and back, for one tokenizer, and one protocol with its format.

Prompts and observations carry untrusted text, so they are encoded with special tokens split: `<|im_end|>` in a passage
is ordinary text. The format's own markers are taken as the tokenizer has them, one token or several. Text that a model
wrote is never tokenized again: written ids stay as they were sampled. The one exception is a model behind a server that
returns text only.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.base import Turn
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.frame import Frame, Frames
from dgpo_cli.models.tokenizer_errors import require_few, tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 4096  # texts and their tokens
# Text that some tokenizer takes for a special token, without its first character.
_SPECIAL = re.compile(
    r"([<\[])(?=[|\uff5c][^<>\s]{1,60}[|\uff5c]>|/?(?:s|bos|eos|pad|unk)>|/?INST\]|(?:start|end)_of_turn>)"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: tuple[int, ...]
    escaped: int = 0  # number of look-alikes of the agent's tags that were escaped
    truncated: bool = False


def _byte_of_character() -> dict[str, int]:
    """Inverse of the byte-level alphabet of GPT-2 (Radford et al. 2019): printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(rest)}


class Codec:
    """Raises ModelError if the tokenizer's tokens cannot be mapped to bytes (only byte-level BPE can)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
        self.tokenizer = tokenizer
        self.protocol, self.format = protocol, protocol.agent_format
        self.vocabulary_size = len(tokenizer)
        # Episodes of a question share its prompt, and often their search results.
        self._encode = lru_cache(_REMEMBERED)(self._encode_anew)

    @cached_property
    def _bytes(self) -> list[bytes]:
        with tokenizer_errors(self.tokenizer.name_or_path):
            return self._byte_table()

    def _byte_table(self) -> list[bytes]:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        if "ByteLevel" not in json.dumps(backend["decoder"]):
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} is not byte-level BPE",
                hint="use a Qwen or Llama-3 family model, or a run trained from one",
            )
        added = {token["id"]: token for token in backend["added_tokens"]}
        alphabet = _byte_of_character()
        table = []
        for index, token in enumerate(self.tokenizer.convert_ids_to_tokens(list(range(self.vocabulary_size)))):
            if index in added:
                text = "" if added[index]["special"] else added[index]["content"]
                table.append(text.encode())
            else:
                table.append(bytes(alphabet[character] for character in token))
        return table

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for special tokens and ids outside the tokenizer."""
        return self._bytes[token_id] if token_id < self.vocabulary_size else b""

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's own, and the chat end marker where there is one."""
        names = {self.tokenizer.eos_token, "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"}
        vocabulary = self.tokenizer.get_vocab()
        found = {vocabulary[name] for name in names if name in vocabulary}
        return frozenset(found if self._message_end is None else {*found, self._message_end})

    @cached_property
    def digest(self) -> str:
        """Short hash for manifests: two codecs with the same digest give a token id the same meaning."""
        special = sorted(i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        meaning = json.dumps([sorted(self.tokenizer.get_vocab().items()), special])
        return hashlib.sha256(meaning.encode()).hexdigest()[:16]

    @property
    def pad_id(self) -> int:
        """Any valid id: padding is masked by position, never recognised by its id."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def _encode_anew(self, text: str, trusted: bool) -> tuple[int, ...]:
        name = self.tokenizer.name_or_path
        with tokenizer_errors(name):
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted).input_ids
        require_few(len(ids), text, name)
        return tuple(int(i) for i in ids)

    @cached_property
    def _frames(self) -> Frames | None:
        """The frames of the chat template; None if the protocol wants no messages or the tokenizer has no template.

        Raises ModelError where the format cannot do without.
        """
        if self.protocol.chat_template and self.tokenizer.chat_template:
            frames = Frames(self.tokenizer, self.protocol)
            if self.format.in_messages:
                frames.results  # noqa: B018 - refuses a template that shows no results, before anything is written
            return frames
        if self.format.in_messages:
            raise ModelError(
                f"the format {self.protocol.format} needs a chat template, and the tokenizer has none",
                hint="take the format tags, or a model with a chat template",
            )
        return None

    @cached_property
    def _message_end(self) -> int | None:
        """The token that ends a message of the model, where turns are messages."""
        frames = self._frames if self.format.in_messages else None
        return None if frames is None else self._encode(frames.results.head, True)[0]

    def _framed(self, text: str, frame: Frame) -> tuple[int, ...]:
        """Ids of an untrusted text between trusted ones."""
        body = self._encode(f"{frame.before}{text.strip() if frame.strips else text}{frame.after}", False)
        return (*self._encode(frame.head, True), *body, *self._encode(frame.tail, True))

    def _read(self, text: str, after: int | None) -> tuple[int, ...]:
        """Ids of the text between two turns; `after` is the last token of the first turn."""
        frames = self._frames if self.format.in_messages else None
        if frames is None:
            return self._encode(text, False)
        ids = self._framed(text, frames.results)
        return ids[1:] if ids[0] == after else ids  # the model has ended its message itself

    def prompt_ids(self, question: str) -> Encoded:
        text, escaped = self.protocol.render_prompt(question)
        if self._frames is None:
            with tokenizer_errors(self.tokenizer.name_or_path):
                start = tuple(int(i) for i in self.tokenizer("", add_special_tokens=True).input_ids)
            return Encoded((*start, *self._encode(text, False)), escaped)
        return Encoded(self._framed(text, self._frames.prompt), escaped)

    def observation_ids(self, passages: Sequence[Passage], limit: int, *, after: int | None = None) -> Encoded:
        """Ids of the observation, at most `limit`: the results are cut, never the text around them.

        `after` is the last token before it.
        """
        results, escaped = self.format.escape(self.format.render_results(passages))
        ids = self._shown(results, after)
        if len(ids) <= limit:
            return Encoded(ids, escaped)
        results_ids = self._encode(results, False)
        keep = len(results_ids)
        while len(ids) > limit and keep > 0:
            keep = max(0, keep - max(1, len(ids) - limit))
            results = self.decode(results_ids[:keep]).rstrip("\ufffd")
            results, _ = self.format.escape(results)
            ids = self._shown(results, after)
        return Encoded(ids, escaped, truncated=True)

    def _shown(self, results: str, after: int | None) -> tuple[int, ...]:
        return self._read(self.protocol.observation.replace("{results}", results), after)

    def passages_in(self, observation: str) -> list[Passage]:
        """The passages in an observation, given as decoded text."""
        frames = self._frames if self.format.in_messages else None
        head, _, tail = self.protocol.observation.partition("{results}")
        if frames is not None:
            frame = frames.results
            head = self.decode(self._encode(frame.head + frame.before, True)) + head
            tail += self.decode(self._encode(frame.after + frame.tail, True))
        return self.format.passages_in(observation.removeprefix(head).removesuffix(tail))

    def correction_ids(self, *, after: int | None = None) -> Encoded:
        return Encoded(self._read(self.protocol.correction, after))

    def parse(self, turn: Sequence[int], *, ended: bool) -> Turn:
        """Parse the tokens of a turn; see `Format.parse`."""
        return self.format.parse(self.decode(turn), ended=ended)

    def answer_tokens(self, ids: Sequence[int], turn: Turn) -> slice:
        """The tokens of a turn that its answer has a part in, or all of them where its place is unknown.

        `turn` is what `ids` were parsed as.
        """
        ends = [*accumulate(len(self.token_bytes(i)) for i in ids)]
        replaced = len(self.decode(ids).encode()) != ends[-1]  # bytes that are no text
        if turn.answer_at is None or not turn.content or replaced:
            return slice(0, len(ids))
        begin = len(turn.kept[: turn.answer_at].encode())
        end = begin + len(turn.content.encode())
        return slice(bisect_right(ends, begin), bisect_left(ends, end) + 1)

    def with_turns(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with its turns; they are parsed from its tokens if an old record does not hold them."""
        if trajectory.written_turns is not None:
            return trajectory
        turns = []
        for written, start, stop in trajectory.spans():
            ids = trajectory.token_ids[start:stop]
            if written:
                turns.append(self.parse(ids, ended=ids[-1] in self.eos_ids).at(start, stop))
        return replace(trajectory, written_turns=tuple(turns))

    def turn_ids(self, text: str) -> list[int]:
        """Ids of a turn as a model would write it: a message that no stop ends is ended by its token."""
        ids = self.text_ids(text)
        end = self._message_end
        return ids if end is None or any(stop in text for stop in self.format.stops) else [*ids, end]

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text; what looks like a special token in it stays text."""
        return [*self._encode(text, False)]

    def served_text(self, ids: Sequence[int]) -> str:
        """Text for a server that tokenizes by itself: special tokens by name, without those that it puts in front.

        It takes every name of a special token for that token, so look-alikes in ordinary text are escaped visibly
        (`&lt;|im_end|>`): a passage must not end the message that it stands in.
        """
        added = self.tokenizer("", add_special_tokens=True).input_ids
        ids = ids[len(added) :] if added and list(ids[: len(added)]) == list(added) else ids
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        names = re.compile("|".join(re.escape(name[0]) + f"(?={re.escape(name[1:])})" for name in special.values()))
        text, run = "", []
        for token in (*ids, None):
            if token is not None and token not in special:
                run.append(token)
                continue
            plain = _SPECIAL.sub(_escaped, self.decode(run))
            text += (names.sub(_escaped, plain) if special else plain) + ("" if token is None else special[token])
            run = []
        return text


def _escaped(found: re.Match[str]) -> str:
    return {"<": "&lt;", "[": "&#91;"}.get(found[0], f"&#{ord(found[0])};")
