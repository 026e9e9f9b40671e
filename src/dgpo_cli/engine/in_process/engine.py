"""Rollouts in the training process, for models of the Llama family.

The weights are the trainer's own parameters, read in place, so they are never stale. A slot's keys and values survive
its turns: an observation costs its own tokens. A prefix that prompts share goes through the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dgpo_cli.engine.base import Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.draw import NextTokens, tokens_and_logprobs
from dgpo_cli.engine.in_process.graphs import Burst, burst_of
from dgpo_cli.engine.in_process.passes import Pass
from dgpo_cli.engine.in_process.rows import Rows
from dgpo_cli.engine.in_process.schedule import SHARED_TOKENS, Slot, common_prefix, moves, passes
from dgpo_cli.engine.in_process.sizes import piece
from dgpo_cli.engine.sampling import stream_key, uniforms
from dgpo_cli.engine.stops import StopMatcher, Stops
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.finite import require_probabilities
from dgpo_cli.models.ways import WAYS, masked_attention


@dataclass(frozen=True, slots=True)
class Blend:
    """A second model that reads along: tokens are drawn from share * its distribution + (1 - share) * the first's."""

    model: PreTrainedModel
    share: float


class InProcessEngine:
    """`slots` episodes at once, each of at most `capacity` tokens.

    Weights are read when the first of its slots opens, and stay the same until all of them are closed.

    A step reads pending tokens of the slots and writes one token for each, or, where none are pending, `burst` tokens
    for each (by default 1 on a CPU and several on a GPU; see `Burst`).

    Raises ModelError for a model that `Decoder` cannot read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        slots: int,
        capacity: int,
        blend: Blend | None = None,
        burst: int | None = None,
    ) -> None:
        models = [model] if blend is None else [model, blend.model]
        self._model, self._codec = model, codec
        self._capacity = min([capacity, *(m.config.get_text_config().max_position_embeddings for m in models)])
        self._device = next(model.parameters()).device
        self._decoders = [Decoder(m, slots, self._capacity) for m in models]
        self._source = NextTokens(self._decoders, codec.vocabulary_size, 0.0 if blend is None else blend.share)
        if burst is None:
            burst = burst_of(self._device)
        self._burst = Burst(self._source, slots, self._capacity, burst) if burst > 1 else None
        self._dtype = self._decoders[0].weights.dtype  # of masks
        self._pass_tokens = min(decoder.pass_tokens for decoder in self._decoders)
        self._rows = Rows(slots, WAYS.steps_per_doubling)
        self._stale = True
        self._stops: dict[tuple[str, ...], Stops] = {}
        self._next_id = 0

    @property
    def capacity(self) -> int:
        return int(self._capacity)

    @property
    def free_slots(self) -> int:
        return self._rows.free

    def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
        """Raises ValueError if no slot is free or the prompt leaves no room to write."""
        if not self.free_slots:
            raise ValueError(f"all {len(self._rows)} slots are open")
        if not 0 < len(token_ids) < self._capacity:
            raise ValueError(f"a prompt of {len(token_ids)} tokens in a slot of {self._capacity}")
        row = self._rows.first_free()
        slot = Slot(self._next_id, row, sampling, tuple(token_ids), list(token_ids), self._matcher(sampling))
        self._next_id += 1
        self._stale |= self._rows.free == len(self._rows)
        self._rows.add(slot)
        self._start_turn(slot)
        return slot.id

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        """Raises ValueError if the slot is still writing or the observation leaves no room to write."""
        state = self._rows[slot]
        if state.running:
            raise ValueError(f"slot {slot} is in the middle of a turn")
        if state.length + len(state.pending) + len(token_ids) >= self._capacity:
            raise ValueError(f"slot {slot} has no room for {len(token_ids)} more tokens and an answer")
        state.pending.extend(token_ids)
        state.turn += 1
        self._start_turn(state)

    def close(self, slot: SlotId) -> None:
        row = self._rows.remove(slot).row
        for decoder in self._decoders:
            decoder.cache.release(row)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        running = [slot for slot in self._rows if slot.running]
        if not running:
            return []
        if self._stale:
            self._take_weights()
        rows, longest = self._rows.most()
        for decoder in self._decoders:
            decoder.cache.make_room(rows, min(self._capacity, longest + (self._burst.tokens if self._burst else 0)))
        self._move(moves(running))
        with masked_attention(self._device):
            return self._advance(running)

    def _take_weights(self) -> None:
        for decoder in self._decoders:
            decoder.weights.refresh()
        if self._burst is not None:
            self._burst.refreshed()
        self._stale = False

    def _advance(self, running: Sequence[Slot]) -> list[Event]:
        self._share_prompts([slot for slot in running if not slot.length])
        for slot in running:  # all but the last piece of a long text
            self._read(slot, len(slot.pending) - piece(len(slot.pending), slot.length))
        if self._burst is not None:
            reading = [slot for slot in running if len(slot.pending) > 1]
            if not reading:
                return self._write_burst(self._burst, running)
            running = reading
        events = []
        for together in passes(running, self._pass_tokens):
            tokens, logprobs = self._draw(together)
            events += [self._write(s, (t,), (p,)) for s, t, p in zip(together, tokens, logprobs, strict=True)]
        return events

    def _matcher(self, sampling: Sampling) -> StopMatcher:
        if sampling.stop not in self._stops:
            self._stops[sampling.stop] = Stops(sampling.stop, self._codec.token_bytes, self._codec.eos_ids)
        return StopMatcher(self._stops[sampling.stop])

    def _start_turn(self, slot: Slot) -> None:
        slot.running, slot.written = True, 0
        slot.stops = self._matcher(slot.sampling)
        slot.stream = stream_key(slot.sampling.seed, slot.sampling.key, slot.turn)

    def _move(self, wanted: Sequence[tuple[Slot, int]]) -> None:
        """Move slots into other rows; the slots there take their place."""
        if not wanted:
            return
        sources, targets, length = [], [], 0
        left: dict[int, int] = {}  # tokens that are to stay in each row
        for slot, row in wanted:
            old = slot.row
            other = self._rows.swap(slot, row)
            left |= {row: slot.length, old: 0 if other is None else other.length}
            sources.append(old)
            targets.append(row)
            length = max(length, slot.length)
            if other is not None:
                sources.append(row)
                targets.append(old)
                length = max(length, other.length)
        for decoder in self._decoders:
            decoder.cache.copy(sources, targets, length)
            for row, kept in left.items():
                decoder.cache.release(row, kept)

    def _share_prompts(self, fresh: Sequence[Slot]) -> None:
        """Give new slots the keys and values of a prefix that another slot has read, or that all of them share."""
        if not fresh:
            return
        donor = next((slot for slot in self._rows if slot.length), None)
        if donor is None:
            donor = fresh[0]
            shared = min(common_prefix(donor.prompt, slot.prompt[:-1]) for slot in fresh)
            if len(fresh) == 1 or shared < SHARED_TOKENS:
                return
            self._read(donor, shared)
        for slot in fresh:
            shared = min(common_prefix(donor.prompt, slot.prompt[:-1]), donor.length)
            if slot is not donor and shared >= SHARED_TOKENS:
                for decoder in self._decoders:
                    decoder.cache.copy([donor.row], [slot.row], shared)
                slot.length, slot.pending = shared, list(slot.prompt[shared:])

    def _read(self, slot: Slot, count: int) -> None:
        """Read the first `count` pending tokens of a slot into the cache, without drawing a token."""
        while count:
            ids = slot.pending[: piece(count, slot.length)]
            for decoder in self._decoders:
                decoder.last_hidden(Pass.of([ids], [slot.row], [slot.length], self._device, self._dtype))
            slot.length += len(ids)
            slot.pending = slot.pending[len(ids) :]
            count -= len(ids)

    def _draw(self, slots: Sequence[Slot]) -> tuple[list[int], list[float]]:
        """Run the pending tokens, and draw the token after each slot's last."""
        pending, rows, starts = zip(*((s.pending, s.row, s.length) for s in slots), strict=True)
        new = Pass.of(pending, rows, starts, self._device, self._dtype)
        places = np.array([s.written for s in slots], dtype=np.uint64)
        temperature = [s.sampling.temperature for s in slots]
        told = torch.from_numpy(np.stack((uniforms(_streams(slots), places), temperature))).to(self._device)
        tokens, logprobs = self._source.draw(new, told[0], told[1].float(), greedy=not any(temperature))
        for slot in slots:
            slot.length += len(slot.pending)
            slot.pending = []
        return tokens_and_logprobs(tokens, logprobs)

    def _write_burst(self, burst: Burst, slots: Sequence[Slot]) -> list[Event]:
        """Continue slots with one pending token each; output of the unused rows between them is discarded."""
        window = self._rows.window(slots)
        room = max(min(s.sampling.max_new_tokens - s.written, self._capacity - 1 - s.length) for s in slots)
        count = min(burst.tokens, room)
        ids, lengths = np.zeros(window, dtype=np.int64), self._rows.lengths(window)
        rows = [slot.row for slot in slots]
        ids[rows] = [slot.pending[0] for slot in slots]
        temperature, uniform = np.zeros(window, dtype=np.float32), np.zeros((window, count))
        temperature[rows] = [slot.sampling.temperature for slot in slots]
        places = np.array([slot.written for slot in slots], dtype=np.uint64)
        uniform[rows] = uniforms(_streams(slots)[:, None], places[:, None] + np.arange(count, dtype=np.uint64))
        longest = max(slot.length for slot in slots)
        tokens, logprobs = burst.run(ids, lengths, temperature, uniform, longest=longest)
        for slot in slots:
            slot.length += 1
        return [self._write(slot, tokens[slot.row], logprobs[slot.row]) for slot in slots]

    def _write(self, slot: Slot, tokens: Sequence[int], logprobs: Sequence[float]) -> Event:
        """Append drawn tokens to a slot, up to the token that ends its turn; the first is not in the cache."""
        room = min(slot.sampling.max_new_tokens - slot.written, self._capacity - slot.length)
        tokens = tokens[:room]
        count, end = slot.stops.feed(tokens), None
        if count is not None:
            end = TurnEnd.STOP
        elif len(tokens) == room:
            end = TurnEnd.LENGTH
        tokens, logprobs = tokens[:count], logprobs[: len(tokens[:count])]
        require_probabilities(self._model, logprobs)
        slot.written += len(tokens)
        slot.length += len(tokens) - 1
        slot.pending = [tokens[-1]]
        slot.running = end is None
        return Event(slot.id, tokens, logprobs, end)


def _streams(slots: Sequence[Slot]) -> np.ndarray:
    return np.array([slot.stream for slot in slots], dtype=np.uint64)
