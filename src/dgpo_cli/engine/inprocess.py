"""Rollouts in the training process, for models of the Llama family.

The weights are the trainer's own parameters, read in place, so they are never stale. A slot's keys and values survive
its turns: an observation costs its own tokens. A beginning that prompts have in common goes through the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dgpo_cli.engine.base import Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.decode import Decoder, Pass
from dgpo_cli.engine.sampling import sample, stream_key, uniforms
from dgpo_cli.engine.schedule import SHARED_TOKENS, Slot, common_prefix, moves, passes
from dgpo_cli.engine.stops import StopMatcher
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.vocab import project
from dgpo_cli.objectives.divergence import log_probs, mixture


@dataclass(frozen=True, slots=True)
class Blend:
    """A second model that reads along: tokens are drawn from share * its distribution + (1 - share) * the first's."""

    model: PreTrainedModel
    share: float


class InProcessEngine:
    """`slots` episodes at once, each of at most `capacity` tokens.

    Raises ModelError for a model that `Decoder` cannot read.
    """

    def __init__(
        self, model: PreTrainedModel, codec: Codec, *, slots: int, capacity: int, blend: Blend | None = None
    ) -> None:
        models = [model] if blend is None else [model, blend.model]
        self._codec, self._blend = codec, blend
        self._capacity = min([capacity, *(m.config.get_text_config().max_position_embeddings for m in models)])
        self._device = next(model.parameters()).device
        self._decoders = [Decoder(m, slots, self._capacity) for m in models]
        self._slots: dict[SlotId, Slot] = {}
        self._rows: list[Slot | None] = [None] * slots
        self._next_id = 0

    @property
    def capacity(self) -> int:
        return int(self._capacity)

    @property
    def free_slots(self) -> int:
        return len(self._rows) - len(self._slots)

    def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
        """Raises ValueError if no slot is free or the prompt leaves no room to write."""
        if not self.free_slots:
            raise ValueError(f"all {len(self._rows)} slots are open")
        if not 0 < len(token_ids) < self._capacity:
            raise ValueError(f"a prompt of {len(token_ids)} tokens in a slot of {self._capacity}")
        row = next(row for row, other in enumerate(self._rows) if other is None)
        slot = Slot(self._next_id, row, sampling, tuple(token_ids), list(token_ids), self._matcher(sampling))
        self._next_id += 1
        self._rows[row] = self._slots[slot.id] = slot
        self._start_turn(slot)
        return slot.id

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        """Raises ValueError if the slot is still writing or the observation leaves no room to write."""
        state = self._slots[slot]
        if state.running:
            raise ValueError(f"slot {slot} is in the middle of a turn")
        if state.length + len(state.pending) + len(token_ids) >= self._capacity:
            raise ValueError(f"slot {slot} has no room for {len(token_ids)} more tokens and an answer")
        state.pending.extend(token_ids)
        state.turn += 1
        self._start_turn(state)

    def close(self, slot: SlotId) -> None:
        self._rows[self._slots.pop(slot).row] = None

    @torch.no_grad()
    def step(self) -> list[Event]:
        running = [slot for slot in self._slots.values() if slot.running]
        if not running:
            return []
        self._move(moves(running))
        self._share_prompts([slot for slot in running if not slot.length])
        events = []
        for together in passes(running):
            tokens, logprobs = self._sample(together, self._forward(together))
            events += [self._write(s, t, p) for s, t, p in zip(together, tokens, logprobs, strict=True)]
        return events

    def _matcher(self, sampling: Sampling) -> StopMatcher:
        return StopMatcher(sampling.stop, self._codec.token_bytes)

    def _start_turn(self, slot: Slot) -> None:
        slot.running, slot.written = True, 0
        slot.stops = self._matcher(slot.sampling)
        slot.stream = stream_key(slot.sampling.seed, slot.sampling.key, slot.turn)

    def _move(self, wanted: Sequence[tuple[Slot, int]]) -> None:
        """Put slots into other rows; what was there takes their place."""
        if not wanted:
            return
        sources, targets, length = [], [], 0
        for slot, row in wanted:
            other, old = self._rows[row], slot.row
            sources.append(old)
            targets.append(row)
            length = max(length, slot.length)
            if other is not None:
                sources.append(row)
                targets.append(old)
                length = max(length, other.length)
                other.row = old
            self._rows[old], self._rows[row], slot.row = other, slot, row
        for decoder in self._decoders:
            decoder.cache.copy(sources, targets, length)

    def _share_prompts(self, fresh: Sequence[Slot]) -> None:
        """Give new slots the keys and values of a beginning that another slot has read, or that all of them share."""
        if not fresh:
            return
        donor = next((slot for slot in self._slots.values() if slot.length), None)
        if donor is None:
            donor = fresh[0]
            shared = min(common_prefix(donor.prompt, slot.prompt[:-1]) for slot in fresh)
            if len(fresh) == 1 or shared < SHARED_TOKENS:
                return
            self._read(donor, donor.prompt[:shared])
        for slot in fresh:
            shared = min(common_prefix(donor.prompt, slot.prompt[:-1]), donor.length)
            if slot is not donor and shared >= SHARED_TOKENS:
                for decoder in self._decoders:
                    decoder.cache.copy([donor.row], [slot.row], shared)
                slot.length, slot.pending = shared, list(slot.prompt[shared:])

    def _read(self, slot: Slot, ids: Sequence[int]) -> None:
        """Take the first pending tokens of a slot into the cache, without asking what comes next."""
        for decoder in self._decoders:
            decoder.last_hidden(Pass.of([ids], [slot.row], [slot.length], self._device))
        slot.length += len(ids)
        slot.pending = slot.pending[len(ids) :]

    def _forward(self, slots: Sequence[Slot]) -> Tensor:
        """Run the pending tokens; logits [R, V] for the token after each slot's last."""
        new = Pass.of([s.pending for s in slots], [s.row for s in slots], [s.length for s in slots], self._device)
        logits = [
            project(decoder.model, decoder.last_hidden(new), self._codec.vocabulary_size) for decoder in self._decoders
        ]
        for slot in slots:
            slot.length += len(slot.pending)
            slot.pending = []
        return logits[0] if self._blend is None else self._mixed(slots, logits[0], logits[1], self._blend.share)

    def _mixed(self, slots: Sequence[Slot], own: Tensor, other: Tensor, share: float) -> Tensor:
        """Logits [R, V] whose distribution at each row's temperature is the mixture of both at that temperature."""
        temperature = torch.tensor([s.sampling.temperature or 1.0 for s in slots], device=self._device)[:, None]
        mixed = mixture(log_probs(other / temperature), log_probs(own / temperature), share)
        return mixed * temperature

    def _sample(self, slots: Sequence[Slot], logits: Tensor) -> tuple[list[int], list[float]]:
        keys = np.array([s.stream for s in slots], dtype=np.uint64)
        places = np.array([s.written for s in slots], dtype=np.uint64)
        uniform = torch.from_numpy(uniforms(keys, places)).to(self._device)
        temperature = torch.tensor([s.sampling.temperature for s in slots], device=self._device)
        tokens, logprobs = sample(logits, uniform, temperature)
        return tokens.tolist(), logprobs.tolist()

    def _write(self, slot: Slot, token: int, logprob: float) -> Event:
        slot.pending = [token]
        slot.written += 1
        end = None
        if slot.stops.feed(token) or token in self._codec.eos_ids:
            end = TurnEnd.STOP
        elif slot.written >= slot.sampling.max_new_tokens or slot.length + 1 >= self._capacity:
            end = TurnEnd.LENGTH
        slot.running = end is None
        return Event(slot.id, (token,), (logprob,), end)
