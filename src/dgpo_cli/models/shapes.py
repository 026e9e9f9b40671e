"""Sizes of models, in plain Python: of aliases from their published config.json files, of others from their own.

Nothing is downloaded for an alias, and no weight is read for any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.schema import shown
from dgpo_cli.errors import ConfigError, ModelError
from dgpo_cli.models import gguf
from dgpo_cli.models.gguf_header import Header, read_header
from dgpo_cli.models.lora_options import LINEAR_MAPS
from dgpo_cli.models.sources import config_values, resolve

LARGEST = 1 << 24  # ours, of any size that a configuration names; the largest vocabulary known has not 300,000 tokens


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2, Qwen3 or Llama decoder. Counts are exact; a test compares them with transformers' model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool  # the output layer is the embedding
    qkv_bias: bool
    head_size: int | None = None  # the hidden size over the heads by default
    qk_norm: bool = False  # one norm for the queries of a head, one for its keys

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden // self.heads

    @property
    def linear_maps(self) -> dict[str, int]:
        """Those of a layer, each with the smaller of its widths."""
        query, inner = min(self.hidden, self.query_width), min(self.hidden, self.intermediate)
        kv = min(self.hidden, self.kv_width)
        return dict(zip(LINEAR_MAPS, (query, kv, kv, query, inner, inner, inner), strict=True))

    @property
    def query_width(self) -> int:
        return self.head_width * self.heads

    @property
    def kv_width(self) -> int:
        return self.head_width * self.kv_heads

    @property
    def head_parameters(self) -> int:
        """Of the embedding, and of the output layer alike."""
        return self.vocabulary * self.hidden

    @property
    def layer_linear(self) -> int:
        """Weights of one layer's linear maps, without biases."""
        attention = 2 * self.hidden * self.query_width + 2 * self.hidden * self.kv_width
        return attention + 3 * self.hidden * self.intermediate

    @property
    def body(self) -> int:
        """Parameters without embedding and output layer."""
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_width if self.qk_norm else 0)
        return self.layers * (self.layer_linear + biases + norms) + self.hidden

    @property
    def parameters(self) -> int:
        return self.body + self.head_parameters * (1 if self.tied else 2)


SHAPES: dict[str, Shape] = {
    "qwen-0.5b": Shape(896, 4_864, 24, 14, 2, 151_936, tied=True, qkv_bias=True),
    "qwen-3b": Shape(2_048, 11_008, 36, 16, 2, 151_936, tied=True, qkv_bias=True),
    "qwen-7b": Shape(3_584, 18_944, 28, 28, 4, 152_064, tied=False, qkv_bias=True),
    "llama-1b": Shape(2_048, 8_192, 16, 32, 8, 128_256, tied=True, qkv_bias=False),
    "llama-8b": Shape(4_096, 14_336, 32, 32, 8, 128_256, tied=False, qkv_bias=False),
    "smollm2-135m": Shape(576, 1_536, 30, 9, 3, 49_152, tied=True, qkv_bias=False),
    "smollm2-360m": Shape(960, 2_560, 32, 15, 5, 49_152, tied=True, qkv_bias=False),
    "qwen3-0.6b": Shape(1_024, 3_072, 28, 16, 8, 151_936, tied=True, qkv_bias=False, head_size=128, qk_norm=True),
    "qwen3-1.7b": Shape(2_048, 6_144, 28, 16, 8, 151_936, tied=True, qkv_bias=False, head_size=128, qk_norm=True),
}
_SAME = {"qwen-3b-instruct": "qwen-3b", "qwen-0.5b-kd": "qwen-0.5b", "dgpo-qwen-0.5b": "qwen-0.5b"}


def is_listed(name: str) -> bool:
    """Whether the shape is known by the name alone."""
    return _SAME.get(name, name) in SHAPES


def shape_of(name: str) -> Shape:
    """The shape of an alias, a GGUF file, or a folder, run or hub id whose configuration can be read.

    Raises ModelError for a name that leads nowhere, ConfigError where no size is known.
    """
    known = _SAME.get(name, name)
    if known in SHAPES:
        return SHAPES[known]
    if gguf.is_gguf(file := Path(name).expanduser()):
        return _of_header(read_header(file))
    values = config_values(resolve(name))
    if values is None:
        raise ConfigError(
            f"the size of model {name!r} is not known: its configuration is not here",
            hint=f"give a folder or a run, or one of: {', '.join([*SHAPES, *_SAME])}",
        )
    return shape_from(name, values)


def shape_from(name: str, values: Mapping[str, Any]) -> Shape:
    """The shape that config.json describes. Raises ModelError if it describes none."""
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = [values.get(key) for key in wanted]
    bad = [key for key, size in zip(wanted, sizes, strict=True) if not _is_size(size)]
    if bad:
        raise ModelError(
            f"{name}: config.json has no usable {bad[0]} ({shown(values.get(bad[0]))})",
            hint="models of the Llama and Qwen families are known",
        )
    hidden, intermediate, layers, heads, vocabulary = (int(size) for size in sizes if size is not None)
    kv_heads, width = values.get("num_key_value_heads"), values.get("head_dim")
    for key, value, divides in (
        ("num_key_value_heads", kv_heads, heads),
        ("head_dim", width, 0),
        ("num_attention_heads", None if width is not None else heads, hidden),
    ):
        if value is not None and not (_is_size(value) and divides % value == 0):
            raise ModelError(
                f"{name}: config.json has {key} = {shown(value)}, which does not go with its other sizes",
                hint="export the model again, or take another",
            )
    return Shape(
        hidden,
        intermediate,
        layers,
        heads,
        int(kv_heads) if kv_heads is not None else heads,
        vocabulary,
        tied=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=bool(values.get("attention_bias", values.get("model_type") == "qwen2")),
        head_size=int(width) if width is not None else None,
        qk_norm=values.get("model_type") == "qwen3",
    )


def _of_header(header: Header) -> Shape:
    """The shape in a checked header, whose stated sizes are those of its tensors."""
    hidden, vocabulary = header.tensors["token_embd.weight"].shape
    first = "blk.0."
    heads = int(header.sizes["attention.head_count"])
    width = header.tensors[f"{first}attn_q.weight"].shape[1] // heads
    return Shape(
        hidden,
        header.tensors[f"{first}ffn_up.weight"].shape[1],
        int(header.sizes["block_count"]),
        heads,
        header.tensors[f"{first}attn_k.weight"].shape[1] // width,
        vocabulary,
        tied="output.weight" not in header.tensors,
        qkv_bias=f"{first}attn_q.bias" in header.tensors,
        head_size=width,
        qk_norm=f"{first}attn_q_norm.weight" in header.tensors,
    )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST
