"""Rollouts in the training process, over any full-attention causal model of transformers.

The weights are the trainer's own parameters, read in place, so they are never stale. A slot's keys and values survive
its turns: an observation costs its own tokens. Slots in the middle of a turn sit in the first rows of the cache, so a
decoding step touches them alone, without padding and without copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dgpo_cli.engine.base import Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.cache import SlotCache
from dgpo_cli.engine.sampling import sample, stream_key, uniforms
from dgpo_cli.engine.stops import StopMatcher
from dgpo_cli.errors import ModelError
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.vocab import precision, project
from dgpo_cli.objectives.divergence import log_probs, mixture

PREFILL_TOKENS = 16_384  # padded tokens of one prefill pass; bounds its activations


@dataclass(slots=True)
class _Slot:
    id: SlotId
    row: int
    sampling: Sampling
    pending: list[int]  # tokens that are not in the cache yet
    stops: StopMatcher
    stream: int
    length: int = 0  # tokens in the cache
    turn: int = 0
    written: int = 0  # tokens of the current turn
    running: bool = True


@dataclass(frozen=True, slots=True)
class Blend:
    """A second model that reads along: tokens are drawn from share * its distribution + (1 - share) * the first's."""

    model: PreTrainedModel
    share: float


class _Reader:
    """A model and the keys and values that it keeps of every slot."""

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        config = model.config.get_text_config()
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
            raise ModelError(
                f"{config.model_type}: sliding-window or linear attention is not supported by the rollout engine",
                hint="use a Qwen2 or Llama family model",
            )
        self.model, self.decoder = model, model.get_decoder()
        device = next(model.parameters()).device
        with precision(model):
            dtype = torch.bfloat16 if torch.is_autocast_enabled("cuda") else next(model.parameters()).dtype
        self.cache = SlotCache(config, slots, capacity, device=device, dtype=dtype)

    def last_hidden(self, rows: slice, ids: Tensor, place: Tensor, length: int, last: Tensor) -> Tensor:
        """Hidden states [R, H] of each row's last new token, from ids and positions [R, Q]; `length` keys are seen."""
        self.cache.window(rows, place, length)
        mask = torch.arange(length, device=ids.device)[None, None, None, :] <= place[:, None, :, None]  # [R, 1, Q, K]
        with precision(self.model):
            hidden = self.decoder(
                input_ids=ids,
                position_ids=place,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return hidden[torch.arange(len(ids), device=ids.device), last]  # type: ignore[no-any-return]


class HFEngine:
    """`slots` episodes at once, each of at most `capacity` tokens. Raises ModelError for sliding-window models."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, *, slots: int, capacity: int, blend: Blend | None = None
    ) -> None:
        models = [model] if blend is None else [model, blend.model]
        self._codec, self._blend = codec, blend
        self._capacity = min([capacity, *(m.config.get_text_config().max_position_embeddings for m in models)])
        self._device = next(model.parameters()).device
        self._readers = [_Reader(m, slots, self._capacity) for m in models]
        self._rows: list[_Slot | None] = [None] * slots
        self._slots: dict[SlotId, _Slot] = {}
        self._running = 0  # rows [0, running) hold the slots in the middle of a turn
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
        row = next(r for r in range(len(self._rows) - 1, -1, -1) if self._rows[r] is None)
        slot = _Slot(self._next_id, row, sampling, list(token_ids), self._matcher(sampling), 0)
        self._next_id += 1
        self._rows[row] = slot
        self._slots[slot.id] = slot
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
        state = self._slots.pop(slot)
        if state.running:
            self._stop_running(state)
        self._rows[state.row] = None

    @torch.no_grad()
    def step(self) -> list[Event]:
        if not self._running:
            return []
        running = [self._at(row) for row in range(self._running)]
        logits: list[Tensor] = []
        for first, last in self._groups(running):
            logits.append(self._forward(running[first:last], first))
        tokens, logprobs = self._sample(running, torch.cat(logits))
        events = [self._write(s, t, p) for s, t, p in zip(running, tokens, logprobs, strict=True)]
        for event in events:
            if event.end is not None:
                self._stop_running(self._slots[event.slot])
        return events

    def _matcher(self, sampling: Sampling) -> StopMatcher:
        return StopMatcher(sampling.stop, self._codec.token_bytes)

    def _at(self, row: int) -> _Slot:
        slot = self._rows[row]
        assert slot is not None, f"row {row} of {self._running} running rows is empty"
        return slot

    def _start_turn(self, slot: _Slot) -> None:
        slot.running, slot.written = True, 0
        slot.stops = self._matcher(slot.sampling)
        slot.stream = stream_key(slot.sampling.seed, slot.sampling.key, slot.turn)
        self._move(slot, self._running)
        self._running += 1

    def _stop_running(self, slot: _Slot) -> None:
        slot.running = False
        self._running -= 1
        self._move(slot, self._running)

    def _move(self, slot: _Slot, row: int) -> None:
        """Put a slot into a row; what was there takes its place."""
        if slot.row == row:
            return
        other = self._rows[row]
        length = max(slot.length, other.length if other else 0)
        if length:
            for reader in self._readers:
                reader.cache.swap(slot.row, row, length)
        self._rows[slot.row], self._rows[row] = other, slot
        if other is not None:
            other.row = slot.row
        slot.row = row

    def _groups(self, running: list[_Slot]) -> list[tuple[int, int]]:
        """Neighbouring rows that go through the model together: decoding rows at once, prefills by padded size."""
        groups: list[tuple[int, int]] = []
        first = 0
        while first < len(running):
            last = first + 1
            widest = len(running[first].pending)
            while last < len(running):
                width = len(running[last].pending)
                together = max(widest, width)
                # A decoding row beside a prefill would be padded to the prefill's width.
                if (widest == 1) != (width == 1) or together * (last + 1 - first) > max(PREFILL_TOKENS, together):
                    break
                widest, last = together, last + 1
            groups.append((first, last))
            first = last
        return groups

    def _forward(self, slots: list[_Slot], first_row: int) -> Tensor:
        """Run the pending tokens of neighbouring rows; logits [R, V] for the token after each row's last."""
        width = max(len(s.pending) for s in slots)
        if width == 1:
            ids = np.array([[s.pending[0]] for s in slots])
        else:
            ids = np.full((len(slots), width), self._codec.pad_id)
            for i, s in enumerate(slots):
                ids[i, : len(s.pending)] = s.pending
        starts = np.array([s.length for s in slots])
        counts = np.array([len(s.pending) for s in slots])
        positions = np.minimum(starts[:, None] + np.arange(width), self._capacity - 1)
        total = int((starts + counts).max())
        place = torch.from_numpy(positions).to(self._device)
        # A padded query writes beyond its row's length; those entries are overwritten before they can be seen, except
        # at the very end of the cache, where a row's real last entry must win.
        if width > 1 and int(starts.max()) + width > self._capacity:
            return self._forward_one_by_one(slots, first_row)
        window = slice(first_row, first_row + len(slots))
        inputs = (torch.from_numpy(ids).to(self._device), place, max(total, int(positions.max()) + 1))
        last = torch.from_numpy(counts - 1).to(self._device)
        logits = [
            project(reader.model, reader.last_hidden(window, *inputs, last), self._codec.vocabulary_size)
            for reader in self._readers
        ]
        for s in slots:
            s.length += len(s.pending)
            s.pending = []
        return logits[0] if self._blend is None else self._mixed(slots, logits[0], logits[1], self._blend.share)

    def _mixed(self, slots: list[_Slot], own: Tensor, other: Tensor, share: float) -> Tensor:
        """Logits [R, V] whose distribution at each row's temperature is the mixture of both at that temperature."""
        temperature = torch.tensor([s.sampling.temperature or 1.0 for s in slots], device=self._device)[:, None]
        mixed = mixture(log_probs(other / temperature), log_probs(own / temperature), share)
        return mixed * temperature

    def _forward_one_by_one(self, slots: list[_Slot], first_row: int) -> Tensor:
        return torch.cat([self._forward([s], first_row + i) for i, s in enumerate(slots)])

    def _sample(self, slots: list[_Slot], logits: Tensor) -> tuple[list[int], list[float]]:
        keys = np.array([s.stream for s in slots], dtype=np.uint64)
        places = np.array([s.written for s in slots], dtype=np.uint64)
        uniform = torch.from_numpy(uniforms(keys, places)).to(self._device)
        temperature = torch.tensor([s.sampling.temperature for s in slots], device=self._device)
        tokens, logprobs = sample(logits, uniform, temperature)
        return tokens.tolist(), logprobs.tolist()

    def _write(self, slot: _Slot, token: int, logprob: float) -> Event:
        slot.pending = [token]
        slot.written += 1
        end = None
        if slot.stops.feed(token) or token in self._codec.eos_ids:
            end = TurnEnd.STOP
        elif slot.written >= slot.sampling.max_new_tokens or slot.length + 1 >= self._capacity:
            end = TurnEnd.LENGTH
        return Event(slot.id, token, logprob, end)
