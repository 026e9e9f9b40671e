"""The forward pass of a rollout, written out for the Llama family: only what generating needs.

The new tokens of all rows lie end to end, so linear layers see no padding. In the last layer only each row's last
token goes beyond its keys and values.

Shapes: N new tokens, R rows, W rows of the cache that attention looks at, H hidden, D of one head, K keys seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dgpo_cli.engine.cache import SlotCache
from dgpo_cli.engine.sizes import aligned, pass_tokens
from dgpo_cli.engine.weights import Weights
from dgpo_cli.errors import ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # the same layer; they differ in biases and norms


@dataclass(frozen=True, slots=True)
class Single:
    """One query per row. `rows` [R] is None where they are the cache's first W rows in order."""

    window: int  # W
    rows: Tensor | None
    hidden_keys: Tensor  # [W, 1, 1, K], 0 for a key that is seen and -inf for one that is not


@dataclass(frozen=True, slots=True)
class Several:
    """Several queries per row, padded to Q of the longest."""

    rows: Tensor  # [R]
    real: Tensor  # [R, Q], False for padding
    hidden_keys: Tensor  # [R, 1, Q, K]


@dataclass(frozen=True, slots=True)
class Pass:
    """New tokens, row by row: first rows with one token, then rows with several, group by group."""

    ids: Tensor  # [N]
    rows: Tensor  # [N]
    positions: Tensor  # [N]
    singles: int  # rows with one new token
    single: Single | None  # of those rows
    several: Sequence[Several]
    last: Tensor | None  # [R] where each row's last token lies among the N; None where every row has one
    final: Single  # of every row's last token

    @classmethod
    def of(cls, new: Sequence[Sequence[int]], rows: Sequence[int], starts: Sequence[int], device: torch.device) -> Pass:
        """`new` tokens of cache rows that hold `starts` tokens; those with one new token come first, then by length."""
        counts = np.array([len(ids) for ids in new])
        row, start = np.array(rows), np.array(starts)
        ends = np.cumsum(counts)
        singles = int((counts == 1).sum())
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        groups = _groups(counts[singles:], singles)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return cls(
            ids=tensor(np.fromiter(chain.from_iterable(new), np.int64, ends[-1])),
            rows=tensor(np.repeat(row, counts)),
            positions=tensor(np.repeat(start, counts) + within),
            singles=singles,
            single=_single(row[:singles], start[:singles], device) if singles and groups else None,
            several=[_several(row[g], start[g], counts[g], device) for g in groups],
            last=tensor(ends - 1) if groups else None,
            final=_single(row, start + counts - 1, device),
        )

    @classmethod
    def of_window(cls, ids: Tensor, positions: Tensor, keys: int, dtype: torch.dtype) -> Pass:
        """One new token [W] at `positions` [W] of each of the first W rows, made of device tensors alone."""
        hidden = torch.where(torch.arange(keys, device=ids.device) <= positions[:, None], 0.0, -torch.inf)
        return cls(
            ids=ids,
            rows=torch.arange(len(ids), device=ids.device),
            positions=positions,
            singles=len(ids),
            single=None,
            several=(),
            last=None,
            final=Single(len(ids), None, hidden.to(dtype)[:, None, None, :]),
        )


def _groups(counts: np.ndarray, offset: int) -> list[slice]:
    """Runs of an ascending list in which padding to the longest at most doubles a row."""
    groups, first = [], 0
    for i in range(1, len(counts) + 1):
        if i == len(counts) or counts[i] > 2 * counts[first]:
            groups.append(slice(offset + first, offset + i))
            first = i
    return groups


def _keys(longest: int) -> np.ndarray:
    return np.arange(aligned(longest))


def _single(rows: np.ndarray, places: np.ndarray, device: torch.device) -> Single:
    window = int(rows.max()) + 1
    place = np.zeros(window, dtype=np.int64)  # rows in between see one key, and nobody reads what comes of it
    place[rows] = places
    hidden = np.where(_keys(int(places.max()) + 1) <= place[:, None], 0.0, -np.inf).astype(np.float32)
    in_order = len(rows) == window and bool((rows == np.arange(window)).all())
    return Single(
        window,
        None if in_order else torch.from_numpy(rows).to(device),
        torch.from_numpy(hidden)[:, None, None, :].to(device),
    )


def _several(rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, device: torch.device) -> Several:
    width = np.arange(int(counts.max()))
    places = starts[:, None] + np.minimum(width, counts[:, None] - 1)  # [R, Q]
    hidden = np.where(_keys(int(places.max()) + 1) <= places[:, :, None], 0.0, -np.inf).astype(np.float32)
    return Several(
        torch.from_numpy(rows).to(device),
        torch.from_numpy(width < counts[:, None]).to(device),
        torch.from_numpy(hidden)[:, None].to(device),
    )


class Decoder:
    """A model and the keys and values that it keeps of every slot, in `dtype` (see `Weights`).

    Raises ModelError for a model of another family, for sliding-window attention, and for rotary embeddings that depend
    on the length of the text.
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int, dtype: torch.dtype | None = None) -> None:
        config = model.config.get_text_config()
        sliding = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
        if config.model_type not in FAMILIES or sliding or getattr(config, "sliding_window", None):
            kind = "sliding-window or linear attention" if config.model_type in FAMILIES else "another architecture"
            raise ModelError(
                f"{config.model_type}: {kind} is not supported by the rollout engine",
                hint=f"use a model of the {', '.join(FAMILIES)} families with full attention",
            )
        rotary = model.get_decoder().rotary_emb
        if getattr(rotary, "rope_type", "default") in ("dynamic", "longrope"):
            raise ModelError(
                f"rotary embeddings of type {rotary.rope_type} are not supported by the rollout engine",
                hint="use a model whose rotary embeddings do not depend on the length of the text",
            )
        self.weights = Weights(model, dtype)
        device = self.weights.device
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._width = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self.pass_tokens = pass_tokens(
            config.hidden_size,
            config.intermediate_size,
            self.weights.dtype.itemsize,
            accelerated=device.type != "cpu",
        )
        layers = config.num_hidden_layers
        self.cache = SlotCache(
            layers, slots, self._shared, aligned(capacity), self._width, device=device, dtype=self.weights.dtype
        )
        with torch.no_grad():
            turns = rotary(torch.zeros(1, device=device), torch.arange(capacity, device=device)[None])
        self._cos, self._sin = (turn[0].float() for turn in turns)  # [capacity, D]
        self._sin[:, : self._width // 2].neg_()  # the first half takes the second's negative

    def last_hidden(self, new: Pass) -> Tensor:
        """Hidden states [R, H] after the last new token of each row; the new tokens' keys and values are kept."""
        body = self.weights.body
        x = body.embed_tokens(new.ids).to(self.weights.residual)
        turn = self._cos[new.positions][:, None], self._sin[new.positions][:, None]
        places = self.cache.places(new.rows, new.positions)
        layers = list(body.layers)
        for index, layer in enumerate(layers):
            x = self._layer(index, layer, x, new, places, turn, final=index == len(layers) - 1)
        return self._normed(body.norm, x)

    def logits(self, new: Pass, vocabulary_size: int) -> Tensor:
        """Logits [R, V] in float32 for the token after each row's last, of the first V tokens."""
        return functional.linear(self.last_hidden(new), self.weights.head[:vocabulary_size]).float()

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        return _normed(norm, x).to(self.weights.dtype)

    def _layer(
        self,
        index: int,
        layer: Any,
        x: Tensor,
        new: Pass,
        places: Tensor,
        turn: tuple[Tensor, Tensor],
        *,
        final: bool,
    ) -> Tensor:
        part, normed = layer.self_attn, self._normed(layer.input_layernorm, x)
        values = part.v_proj(normed).view(len(x), self._shared, self._width)
        keys = _head_norm(part, "k_norm", part.k_proj(normed).view(len(x), self._shared, self._width))
        queries = _head_norm(part, "q_norm", part.q_proj(normed).view(len(x), self._heads, self._width))
        turned = _turned(torch.cat((queries, keys), dim=1), *turn)
        self.cache.write(index, places, turned[:, self._heads :], values)
        queries = turned[:, : self._heads].to(values.dtype)
        if final and new.last is not None:
            x, queries = x[new.last], queries[new.last]
        read = self._one(index, queries, new.final) if final else self._attend(index, queries, new)
        x = x + part.o_proj(read.reshape(len(x), -1))
        normed = self._normed(layer.post_attention_layernorm, x)
        mlp = layer.mlp
        return x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))  # type: ignore[no-any-return]

    def _attend(self, layer: int, queries: Tensor, new: Pass) -> Tensor:
        if not new.several:
            return self._one(layer, queries, new.final)
        parts, first = [], new.singles
        if new.single is not None:
            parts.append(self._one(layer, queries[:first], new.single))
        for group in new.several:
            count = int(group.real.sum())
            parts.append(self._many(layer, queries[first : first + count], group))
            first += count
        return torch.cat(parts)

    def _one(self, layer: int, queries: Tensor, rows: Single) -> Tensor:
        """[R, heads, D] of one query per row; queries that share a key head are that head's queries."""
        if rows.rows is not None:
            spread = queries.new_zeros(rows.window, *queries.shape[1:])
            spread[rows.rows] = queries
            queries = spread
        length = rows.hidden_keys.shape[-1]
        read = _attention(
            queries.reshape(rows.window, self._shared, -1, self._width),
            self.cache.keys[layer][: rows.window, :, :length].to(queries.dtype),
            self.cache.values[layer][: rows.window, :, :length].to(queries.dtype),
            rows.hidden_keys,
        ).reshape(rows.window, self._heads, self._width)
        return read if rows.rows is None else read[rows.rows]

    def _many(self, layer: int, queries: Tensor, group: Several) -> Tensor:
        """[n, heads, D] of the n new tokens of a group."""
        padded = queries.new_zeros(*group.real.shape, *queries.shape[1:])  # [R, Q, heads, D]
        padded[group.real] = queries
        length = group.hidden_keys.shape[-1]
        read = functional.scaled_dot_product_attention(
            padded.transpose(1, 2),
            self.cache.keys[layer][group.rows, :, :length].to(queries.dtype),
            self.cache.values[layer][group.rows, :, :length].to(queries.dtype),
            attn_mask=group.hidden_keys.to(queries.dtype),
            enable_gqa=self._heads != self._shared,
        )
        return read.transpose(1, 2)[group.real]


def _attention(queries: Tensor, keys: Tensor, values: Tensor, hidden_keys: Tensor) -> Tensor:
    if queries.device.type == "cpu" and queries.dtype == torch.float32:
        # Two small products read keys and values once; the fused kernel of the CPU takes a third longer for one query.
        scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(queries.shape[-1] ** -0.5).add_(hidden_keys)
        return torch.matmul(scores.softmax(-1), values)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=hidden_keys.to(queries.dtype))


def _normed(norm: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)


def _head_norm(part: Any, name: str, heads: Tensor) -> Tensor:
    norm = getattr(part, name, None)  # Qwen3 alone has them
    return heads if norm is None else _normed(norm, heads)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [N, heads, D] in float32 (Su et al. 2021), halves paired as in Llama; `sin` with its sign."""
    return (heads * cos).add_(heads.roll(heads.shape[-1] // 2, dims=-1) * sin)
