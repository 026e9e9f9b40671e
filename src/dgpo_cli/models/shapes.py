"""Sizes of the paper's models, from their published config.json files, in plain Python: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2 or Llama decoder. Counts are exact; a test compares them with the model that transformers builds."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool  # the output layer is the embedding
    qkv_bias: bool

    @property
    def query_width(self) -> int:
        return self.hidden  # heads times head size, in all of these

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

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
        return self.layers * (self.layer_linear + biases + 2 * self.hidden) + self.hidden

    @property
    def parameters(self) -> int:
        return self.body + self.head_parameters * (1 if self.tied else 2)


SHAPES: dict[str, Shape] = {
    "qwen-0.5b": Shape(896, 4_864, 24, 14, 2, 151_936, tied=True, qkv_bias=True),
    "qwen-3b": Shape(2_048, 11_008, 36, 16, 2, 151_936, tied=True, qkv_bias=True),
    "qwen-7b": Shape(3_584, 18_944, 28, 28, 4, 152_064, tied=False, qkv_bias=True),
    "llama-1b": Shape(2_048, 8_192, 16, 32, 8, 128_256, tied=True, qkv_bias=False),
    "llama-8b": Shape(4_096, 14_336, 32, 32, 8, 128_256, tied=False, qkv_bias=False),
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
