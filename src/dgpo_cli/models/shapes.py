"""Sizes of the models that have an alias, from their published config.json files: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.errors import ConfigError


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


def shape_of(alias: str) -> Shape:
    """Raises ConfigError for a name that is no alias of `dgpo models`."""
    name = _SAME.get(alias, alias)
    if name not in SHAPES:
        raise ConfigError(
            f"the size of model {alias!r} is not known", hint=f"give one of: {', '.join([*SHAPES, *_SAME])}"
        )
    return SHAPES[name]
