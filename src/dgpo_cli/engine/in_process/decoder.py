"""The forward pass of a rollout, written out for the Llama family, with only the parts that generation needs.

The new tokens of all rows lie end to end, so linear layers see no padding. In the last layer only each row's last
token goes beyond its keys and values.

Shapes: N new tokens, R rows, W rows of the cache that attention looks at, H hidden, D of one head, K keys seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dgpo_cli.engine.in_process.cache import SlotCache
from dgpo_cli.engine.in_process.families import require_supported
from dgpo_cli.engine.in_process.passes import Pass, Several, Single
from dgpo_cli.engine.in_process.sizes import aligned, pass_tokens
from dgpo_cli.engine.in_process.weights import Weights


class Decoder:
    """A model and the keys and values that it keeps of every slot, in `dtype` (see `Weights`).

    Raises ModelError for a model that is not supported (see `require_supported`).
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int, dtype: torch.dtype | None = None) -> None:
        config = model.config.get_text_config()
        require_supported(model.config.name_or_path or config.model_type, config.to_dict())
        rotary = model.get_decoder().rotary_emb
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
            parts.append(self._many(layer, queries[first : first + group.tokens], group))
            first += group.tokens
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
        padded = queries.new_zeros(group.size * group.width, *queries.shape[1:]).index_copy_(0, group.places, queries)
        length = group.hidden_keys.shape[-1]
        read = functional.scaled_dot_product_attention(
            padded.view(group.size, group.width, *queries.shape[1:]).transpose(1, 2),
            self.cache.keys[layer][group.rows, :, :length].to(queries.dtype),
            self.cache.values[layer][group.rows, :, :length].to(queries.dtype),
            attn_mask=group.hidden_keys.to(queries.dtype),
            enable_gqa=self._heads != self._shared,
        )
        return read.transpose(1, 2).flatten(0, 1)[group.places]


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
