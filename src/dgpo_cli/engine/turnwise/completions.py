"""Turns from a server that speaks OpenAI's /v1/completions, such as vLLM, SGLang, llama.cpp or `transformers serve`.

Two ways to talk. With a server that takes and returns token ids (vLLM's `return_token_ids`) and tokenizes a probe as
this process does, token ids go both ways, with log-probabilities where the server's are those of the sampling
distribution. With any other, text goes both ways: the prompt is `Codec.served_text`, what comes back is tokenized here.

Text says less than ids. Most servers drop the stop string from it, which a second probe finds out. Which one it was
they tell (`stop_reason` of vLLM, `matched_stop` of SGLang), or it is taken to be the one whose opening (by
`Format.closes`) is open at the end of the text, and an end-of-text token if none is: of such a server a text that the
model ended inside an open tag cannot be distinguished from one that it closed. Chat completions are not spoken: an
episode goes on after an observation in the middle of a message.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Container, Mapping
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.http import RequestRefused
from dgpo_cli.engine.base import SlotId, TurnEnd
from dgpo_cli.engine.turnwise.engine import TurnRequest, Written
from dgpo_cli.engine.turnwise.model_server import Asker, ModelServer, ModelServerAccess
from dgpo_cli.errors import ModelError
from dgpo_cli.models.codec import Codec

_LONGEST_TOKEN = 1_000  # characters, ours; the longest tokens of published models are blanks, a hundred or two of them
_REPLY = schema.record({"choices": schema.list_of(schema.map_of(schema.ANYTHING), least=1)})
_LOGPROBS = schema.record({"token_logprobs": schema.numbers()})
# With token ids: also the settings that the served model's defaults would change, under vLLM's names.
_TOKENWISE = {
    "return_token_ids": True,
    "include_stop_str_in_output": True,
    "logprobs": 1,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


class CompletionsWriter:
    """Asks for turns from `access.concurrency` threads. Raises ModelError where the server cannot be used.

    The threads end with the process: Ctrl-C waits for no reply, and the server sees the connections close.
    """

    def __init__(self, server: ModelServer, codec: Codec, access: ModelServerAccess) -> None:
        self._codec, self._closes, self._server = codec, codec.format.closes, server
        self._asker = Asker(server, access)
        self._end_id = next(iter(sorted(codec.eos_ids)), None)
        if codec.tokenizer.eos_token_id is not None:
            self._end_id = int(codec.tokenizer.eos_token_id)
        self.speaks_tokens, self._keeps_stop = self._probe()
        # Tokenizers are not for several threads at once, so these only send and receive.
        self._waiting: queue.SimpleQueue[tuple[TurnRequest, dict[str, Any]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[TurnRequest, dict[str, Any] | Exception] | None] = queue.SimpleQueue()
        for _ in range(access.concurrency):
            threading.Thread(target=self._work, daemon=True).start()

    def begin(self, turn: TurnRequest) -> None:
        self._asker.go_on()
        prompt = list(turn.token_ids) if self.speaks_tokens else self._codec.served_text(turn.token_ids)
        request = self._request(
            prompt,
            max_tokens=turn.max_new_tokens,
            temperature=turn.sampling.temperature,
            seed=turn.seed,
            stop=turn.sampling.stop,
        )
        if self.speaks_tokens:
            request |= _TOKENWISE
        self._waiting.put((turn, request))

    def finished(self, wanted: Container[SlotId]) -> list[tuple[SlotId, Written]]:
        replies = [self._done.get()]
        while not self._done.empty():
            replies.append(self._done.get())
        told = [reply for reply in replies if reply is not None and reply[0].slot in wanted]
        return [(turn.slot, self._written(turn, reply)) for turn, reply in told]

    def wake(self) -> None:
        self._done.put(None)

    def _work(self) -> None:
        while True:
            turn, request = self._waiting.get()
            try:
                self._done.put((turn, self._asker.ask("/completions", request)))
            except Exception as error:  # raised again by `finished`, in the thread that waits for it
                self._done.put((turn, error))

    def _written(self, turn: TurnRequest, reply: dict[str, Any] | Exception) -> Written:
        try:
            if isinstance(reply, Exception):
                raise reply
            choice = _choice(reply)
        except RequestRefused as error:
            self._asker.give_up()
            raise self._asker.explained(error) from error
        except Exception:
            self._asker.give_up()
            raise
        return self._from_ids(turn, choice) if self.speaks_tokens else self._from_text(turn, choice)

    def _probe(self) -> tuple[bool, bool]:
        """Whether token ids can go both ways; whether the server leaves stop strings in texts."""
        written = self._codec.text_ids(self._codec.format.write("1,024", "search", "\u6771\u4eac"))
        prompt = self._codec.served_text([*self._codec.prompt_ids("Where is \u00c6r\u00f8?").ids, *written])
        expected = self._codec.tokenizer(prompt, split_special_tokens=False).input_ids
        request = self._request(prompt, max_tokens=8, temperature=0.0, seed=0, stop=())
        try:
            choice = _choice(self._asker.ask("/completions", request | {"return_token_ids": True}, patient=False))
            if choice.get("prompt_token_ids") == expected and isinstance(choice.get("token_ids"), list):
                return True, False
        except RequestRefused as error:
            if error.status not in (400, 422):
                raise self._asker.explained(error) from error
        return False, self._probe_stop(request)

    def _probe_stop(self, request: dict[str, Any]) -> bool:
        """Whether the text that comes back holds the stop string; makes the server stop at what it wrote before."""
        try:
            wrote = _choice(self._asker.ask("/completions", request, patient=False)).get("text")
            if not isinstance(wrote, str) or not wrote.strip():
                return False
            stop = wrote.strip()[:4]
            again = _choice(self._asker.ask("/completions", request | {"stop": [stop]}, patient=False)).get("text")
        except RequestRefused as error:
            raise self._asker.explained(error) from error
        return isinstance(again, str) and stop in again

    def _request(self, prompt: Any, *, max_tokens: int, temperature: float, seed: int, stop: Any) -> dict[str, Any]:
        """The distribution at the temperature, whatever defaults come with the served model."""
        request = {
            "model": self._server.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "frequency_penalty": 0.0,
            "seed": seed,
        }
        return request | ({"stop": list(stop)} if stop else {})

    def _from_ids(self, turn: TurnRequest, choice: Mapping[str, Any]) -> Written:
        ids = choice.get("token_ids")
        if not ids or schema.whole_numbers(0, self._codec.vocabulary_size - 1).fault(ids, ""):
            raise self._asker.unusable(f"a choice without token ids of the tokenizer: {str(choice)[:200]}")
        logprobs = _logprobs(choice, len(ids))
        # A server's are those of temperature 1 unless it was started otherwise.
        return Written(ids, logprobs if turn.sampling.temperature in (0.0, 1.0) else None, _end(choice))

    def _from_text(self, turn: TurnRequest, choice: Mapping[str, Any]) -> Written:
        text, reason = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str):
            raise self._asker.unusable(f"a choice without text: {str(choice)[:200]}")
        if len(text) > _LONGEST_TOKEN * turn.max_new_tokens:
            asked = f"{turn.max_new_tokens:,} tokens were asked for"
            raise self._asker.unusable(f"a text of {len(text):,} characters where at most {asked}")
        stop = turn.sampling.stop
        if reason != "length" and not any(s in text for s in stop):
            text += self._dropped(text, stop, choice)
        ids = self._codec.text_ids(text)
        if any(s in text for s in stop) or (reason == "length" and ids):
            return Written(ids, None, _end(choice))
        if self._end_id is None:
            raise ModelError(
                "the model ended its text, and the tokenizer has no token for that", hint="give another --tokenizer"
            )
        return Written([*ids, self._end_id], None, TurnEnd.STOP)

    def _dropped(self, text: str, stop: tuple[str, ...], choice: Mapping[str, Any]) -> str:
        """The stop string that ended the text and is not in it; empty where an end-of-text token did."""
        told = [choice[name] for name in ("stop_reason", "matched_stop") if name in choice]
        if told or self._keeps_stop:
            return next((reason for reason in told if reason in stop), "")
        opened = {s: text.rfind(self._closes[s]) for s in stop if s in self._closes}
        last = max(opened, key=lambda s: opened[s], default="")
        return last if last and opened[last] >= 0 else ""


def _choice(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice of a reply. Raises Refused if there is none."""
    if problem := _REPLY.fault(reply, ""):
        raise RequestRefused(f"gave a reply without choices: {problem}")
    first: dict[str, Any] = reply["choices"][0]
    return first


def _end(choice: Mapping[str, Any]) -> TurnEnd:
    return TurnEnd.LENGTH if choice.get("finish_reason") == "length" else TurnEnd.STOP


def _logprobs(choice: Mapping[str, Any], count: int) -> list[float] | None:
    """One number per token, or nothing."""
    if _LOGPROBS.fault(choice.get("logprobs"), ""):
        return None
    values = choice["logprobs"]["token_logprobs"]
    return [float(p) for p in values] if len(values) == count else None
