"""Agent text to token ids and back, for one tokenizer and one protocol.

Prompts and observations carry untrusted text, so they are encoded with special tokens split: `<|im_end|>` in a passage
is ordinary text. The agent's own tags are taken as the tokenizer has them, one token or several.
Token ids are not made from text that a model wrote: written ids stay as they were sampled. The one exception is a
model behind a server that tells nothing but text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, cast

from dgpo_cli.core.protocol import Protocol, escape_tags, render_results
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ModelError
from dgpo_cli.models.chat_template import HINT, conversation_text, rendered
from dgpo_cli.models.tokenizer_errors import require_few, tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 4096  # texts and their tokens
_SENTINEL = "DGPO-PROMPT-GOES-HERE"
# What some tokenizer or other takes for one of its special tokens, the first character apart.
_SPECIAL = re.compile(
    r"([<\[])(?=[|\uff5c][^<>\s]{1,60}[|\uff5c]>|/?(?:s|bos|eos|pad|unk)>|/?INST\]|(?:start|end)_of_turn>)"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: tuple[int, ...]
    escaped: int = 0  # look-alikes of the agent's tags that were made visible as text
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
        self.protocol = protocol
        self.vocabulary_size = len(tokenizer)
        # Episodes of a question share its prompt, and often what they find.
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
        return frozenset(vocabulary[name] for name in names if name in vocabulary)

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
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Ids before and after the user's message, and whether the template strips the message."""
        if not (self.protocol.chat_template and self.tokenizer.chat_template):
            with tokenizer_errors(self.tokenizer.name_or_path):
                return tuple(int(i) for i in self.tokenizer("", add_special_tokens=True).input_ids), (), False
        message = [{"role": "user", "content": f"{_SENTINEL}\n"}]
        text = rendered(lambda: self._conversation(message))
        if text.count(_SENTINEL) != 1:
            written = f"writes the user's message {text.count(_SENTINEL)} times"
            raise ModelError(f"the tokenizer's chat template {written}, not once", hint=HINT)
        stripped = f"{_SENTINEL}\n" not in text
        head, _, tail = text.partition(_SENTINEL if stripped else f"{_SENTINEL}\n")
        return self._encode(head, True), self._encode(tail, True), stripped

    def _conversation(self, messages: list[dict[str, str]]) -> str:
        """As the template renders it, on the protocol's date if it has one."""
        if self.protocol.date is not None:  # transformers knows no other day than today
            template, special = self.tokenizer.get_chat_template(), self.tokenizer.special_tokens_map
            return conversation_text(template, messages, special, now=datetime.fromisoformat(self.protocol.date))
        return cast(str, self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def prompt_ids(self, question: str) -> Encoded:
        text, escaped = self.protocol.render_prompt(question)
        head, tail, stripped = self._frame
        body = self._encode(text.strip() if stripped else text, False)
        return Encoded((*head, *body, *tail), escaped)

    def observation_ids(self, passages: Sequence[Passage], limit: int) -> Encoded:
        """Ids of the observation, at most `limit`: the results are cut, never the closing tag, and the cut is told."""
        results, escaped = escape_tags(render_results(passages))
        ids = self._encode(self.protocol.observation.replace("{results}", results), False)
        if len(ids) <= limit:
            return Encoded(ids, escaped)
        results_ids = self._encode(results, False)
        keep = len(results_ids)
        while len(ids) > limit and keep > 0:
            keep = max(0, keep - max(1, len(ids) - limit))
            results = self.decode(results_ids[:keep]).rstrip("\ufffd")
            results, _ = escape_tags(results)
            ids = self._encode(self.protocol.observation.replace("{results}", results), False)
        return Encoded(ids, escaped, truncated=True)

    def correction_ids(self) -> Encoded:
        return Encoded(self._encode(self.protocol.correction, False))

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
