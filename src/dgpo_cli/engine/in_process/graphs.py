"""Decode several tokens per slot by replayed CUDA graphs, without a host round trip per token.

All rows of a window of the cache advance by one token at a time, whether their slots write or not, in shapes that
depend only on the window and on the number of keys. So one CUDA graph is replayed per token; the host reads the burst
at its end and discards tokens after the end of a turn. Their cache entries are never read and are overwritten later.

Shapes: W rows of the window, K keys, B tokens of a burst at most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dgpo_cli.engine.in_process.draw import NextTokens, tokens_and_logprobs
from dgpo_cli.engine.in_process.passes import Pass
from dgpo_cli.engine.in_process.sizes import bucket
from dgpo_cli.models.ways import WAYS

_TOKENS = 8  # of a burst; a row idles for half of them at the end of its turn


def burst_of(device: torch.device) -> int:
    """Tokens of a burst on a device: 1 on a CPU, where there is no round trip to save."""
    return _TOKENS if device.type == "cuda" else 1


class Burst:
    """At most `tokens` tokens in a row of `slots` rows with room for `capacity` tokens each."""

    def __init__(self, source: NextTokens, slots: int, capacity: int, tokens: int) -> None:
        device = source.decoders[0].weights.device
        self.tokens = tokens
        self._source, self._capacity = source, capacity
        self._ids = torch.zeros(slots, dtype=torch.long, device=device)
        self._lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, dtype=torch.float32, device=device)
        self._uniform = torch.zeros(slots, tokens, dtype=torch.float64, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)  # of the token, from 0
        self._written = torch.zeros(slots, tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(slots, tokens, dtype=torch.float32, device=device)
        # bitsandbytes chooses its operations by the inputs of a layer, so they cannot be captured.
        captured = device.type == "cuda" and not any(d.weights.eight_bit for d in source.decoders)
        self._graphs = _Graphs(self._next, device) if captured else None
        self._weights_at: object = None

    def refreshed(self) -> None:
        """To be called after weights were refreshed: their addresses may have changed."""
        if self._graphs is not None:
            self._weights_at = tuple(decoder.weights.places() for decoder in self._source.decoders)

    def run(
        self, ids: np.ndarray, lengths: np.ndarray, temperature: np.ndarray, uniform: np.ndarray, *, longest: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and their log-probabilities, [W, n] each, for the n columns of `uniform` [W, n].

        `ids` [W] are tokens that are not in the cache yet, `lengths` [W] the number of tokens that are, also for rows
        that wait: every row is written behind its length. `longest` is the length of the longest row that is read. A
        row of temperature 0 is greedy.
        """
        window, count = uniform.shape
        keys = bucket(longest + count, self._source.decoders[0].cache.capacity, WAYS.steps_per_doubling)
        # One copy: token ids and lengths are exact in float64.
        told = torch.from_numpy(np.column_stack((ids, lengths, temperature, uniform))).to(self._ids.device)
        for place, held in enumerate((self._ids, self._lengths, self._temperature)):
            held[:window].copy_(told[:, place])
        self._uniform[:window, :count].copy_(told[:, 3:])
        self._number.zero_()
        if self._graphs is not None:
            self._graphs.keep_if((self._weights_at, *(d.cache.addresses() for d in self._source.decoders)))
        token = self._next if self._graphs is None else self._graphs
        greedy = not temperature.any()
        for _ in range(count):
            token(window, keys, greedy)
        return tokens_and_logprobs(self._written[:window, :count], self._logprobs[:window, :count])

    def _next(self, window: int, keys: int, greedy: bool) -> None:
        ids, lengths = self._ids[:window], self._lengths[:window]
        new = Pass.of_window(ids, lengths, keys, self._source.decoders[0].weights.dtype)
        uniform = self._uniform[:window].index_select(1, self._number).squeeze(1)
        tokens, logprobs = self._source.draw(new, uniform, self._temperature[:window], greedy=greedy)
        self._written[:window].index_copy_(1, self._number, tokens[:, None])
        self._logprobs[:window].index_copy_(1, self._number, logprobs[:, None])
        ids.copy_(tokens)
        # Rows that wait are written behind their length, the last place at most.
        lengths.add_(1).clamp_(max=min(self._capacity, self._source.decoders[0].cache.capacity) - 1)
        self._number.add_(1)


class _Graphs:
    """CUDA graphs of a function that only touches tensors that stay where they are, one for each of its arguments.

    The first call with new arguments runs as it is, which sets libraries up; the second is captured.
    """

    def __init__(self, function: Callable[[int, int, bool], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self._captured: dict[tuple[int, int, bool], torch.cuda.CUDAGraph | None] = {}
        self._valid_for: object = None
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def keep_if(self, places: object) -> None:
        """Drop graphs whose tensors have moved."""
        if places != self._valid_for:
            self._captured.clear()
            self._valid_for = places

    def __call__(self, window: int, keys: int, greedy: bool) -> None:
        # The current device need not be the model's, and a capture is of the current one.
        with torch.cuda.device(self._device):
            self._play((window, keys, greedy))

    def _play(self, shape: tuple[int, int, bool]) -> None:
        if shape not in self._captured:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._function(*shape)
            torch.cuda.current_stream().wait_stream(self._stream)
            self._captured[shape] = None
            return
        graph = self._captured[shape]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            # A searching thread may use the GPU meanwhile: only calls of this thread must be capturable.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._function(*shape)
            self._captured[shape] = graph  # a capture that failed is no graph
        graph.replay()
