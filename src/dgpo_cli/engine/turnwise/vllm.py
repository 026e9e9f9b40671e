"""Turns from vLLM in this process, where it is installed: its scheduler, its cache of shared prefixes.

Written against the interface of vLLM 0.33 and tested with a double of it; it has not been run with vLLM itself. For
data and evaluation only: vLLM has its own copy of the weights, which a trainer would have to keep up to date.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Container
from typing import Any

from dgpo_cli.engine.base import SlotId, TurnEnd
from dgpo_cli.engine.turnwise.engine import TurnRequest, TurnwiseEngine, Written
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.sources import ModelSource, context_of


def require_vllm() -> None:
    """Raises ConfigError if vLLM is not installed; imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed here",
            hint="leave --engine out, install its extra vllm into an environment of its own, or run `vllm serve` and "
            "give `dgpo distill-data` its --teacher-url",
        )


class VLLM:
    """`--engine vllm`."""

    @staticmethod
    def require() -> None:
        require_vllm()

    @staticmethod
    def open(source: ModelSource, codec: Codec, /, *, max_tokens: int, dtype: str, seed: int) -> TurnwiseEngine:
        """Raises ConfigError if vLLM is not installed."""
        capacity = min(max_tokens, context_of(source.name) or max_tokens)
        writer = VLLMWriter(source.location, capacity=capacity, dtype=dtype, seed=seed)
        return TurnwiseEngine(writer, codec, capacity=capacity)


class VLLMWriter:
    """All turns that wait are written in one call of vLLM, which batches them by itself."""

    def __init__(self, location: str, *, capacity: int, dtype: str, seed: int) -> None:
        """`location` is a folder or hub id; `dtype` such as "bfloat16". Raises ConfigError without vLLM."""
        require_vllm()
        # Typed as Any: vLLM is not there where types are checked.
        self._vllm: Any = importlib.import_module("vllm")
        self._llm = self._vllm.LLM(
            model=location,
            max_model_len=capacity,
            dtype=dtype,
            seed=seed,
            trust_remote_code=False,
            enable_prefix_caching=True,  # a turn reads what the turns before it wrote
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
        )
        self._waiting: list[TurnRequest] = []

    def begin(self, turn: TurnRequest) -> None:
        self._waiting.append(turn)

    def finished(self, wanted: Container[SlotId]) -> list[tuple[SlotId, Written]]:
        turns, self._waiting = [turn for turn in self._waiting if turn.slot in wanted], []
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(turn.token_ids)} for turn in turns],
            [self._parameters(turn) for turn in turns],
            use_tqdm=False,
        )
        return [(turn.slot, _written(output.outputs[0])) for turn, output in zip(turns, outputs, strict=True)]

    def wake(self) -> None:
        """Nothing: `finished` writes by itself."""

    def _parameters(self, turn: TurnRequest) -> Any:
        return self._vllm.SamplingParams(
            temperature=turn.sampling.temperature,
            seed=turn.seed,
            stop=list(turn.sampling.stop),
            include_stop_str_in_output=True,
            max_tokens=turn.max_new_tokens,
            logprobs=0,  # of the written token alone
        )


def _written(completion: Any) -> Written:
    ids = [int(i) for i in completion.token_ids]
    logprobs = [float(place[i].logprob) for i, place in zip(ids, completion.logprobs, strict=True)]
    return Written(ids, logprobs, TurnEnd.LENGTH if completion.finish_reason == "length" else TurnEnd.STOP)
