"""Write a loaded model as a GGUF file, the form that llama.cpp and programs built on it read.

Names and keys are those that llama.cpp's own conversion writes. Queries and keys of the Llama architecture are put into
its order of the rotary dimensions, norms and biases stay float32, and an output layer that is the embedding is left
out. The agent text goes with the model under a key of our own, which other programs pass over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dgpo_cli.core.extras import require
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models import gguf_tokenizer
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.gguf import PROTOCOL_KEY
from dgpo_cli.models.gguf_header import ARCHITECTURES

FORMS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # by the name of a file, as the library names them
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # of `general.file_type`


def check(model: PreTrainedModel) -> None:
    """Raises ConfigError without the library, ModelError for a model that llama.cpp computes in another way."""
    require("gguf", "gguf", "a GGUF file")
    config, what = model.config, None
    if config.model_type not in ARCHITECTURES:
        what = f"is of architecture {config.model_type!r}; {', '.join(ARCHITECTURES)} can be written"
    elif config.hidden_act != "silu":
        what = f"computes with {config.hidden_act!r} in the place of silu"
    elif "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        what = "attends through a sliding window"
    elif getattr(model.model.rotary_emb, "attention_scaling", 1.0) != 1.0 or (
        config.model_type != "llama" and _rope_factors(model) is not None
    ):
        what = "scales its rotary embeddings in a way that a GGUF file of it does not tell"
    if what is not None:
        raise ModelError(f"the model {what}", hint="export it without --gguf: transformers and vLLM load the folder")


def write(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    *,
    form: str,
    about: Mapping[str, str],
) -> None:
    """`form` is one of FORMS; `about` holds texts by key behind "general.". Raises what `check` raises.

    Holds one tensor at a time in the form of the file.
    """
    check(model)
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_type("model")
    for key, value in about.items():
        writer.add_string(f"general.{key}", value)
    writer.add_file_type(_FILE_TYPES[form])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    _add_tokenizer(writer, tokenizer, config.vocab_size, Codec(tokenizer, protocol).eos_ids)
    writer.add_string(PROTOCOL_KEY, json.dumps(replace(protocol, date=None).to_json(), ensure_ascii=False))
    for name, tensor in _tensors(model):
        shape, kind = tuple(tensor.shape), _kind(tensor, form)
        size = math.prod(gguf.quants.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(model):
            with np.errstate(over="ignore"):  # reported below
                stored = gguf.quants.quantize(tensor.float().contiguous().numpy(), _kind(tensor, form))
            if not np.isfinite(stored if stored.dtype != np.uint8 else 0).all():
                raise ModelError(
                    f"{name} holds numbers that {form} cannot hold", hint="export it as --dtype float32 or bfloat16"
                )
            writer.write_tensor_data(stored)
    finally:
        writer.close()


def _kind(tensor: torch.Tensor, form: str) -> Any:
    """The form of one tensor: a vector stays float32, and a matrix whose rows are no whole blocks is kept in 16 bit."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[FORMS[form]]
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _add_sizes(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int, end_ids: Collection[int]) -> None:
    for name, value in gguf_tokenizer.metadata_of(tokenizer, rows, end_ids).items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name in the file and values, in the order of the model. Raises ModelError for a tensor that has no name there."""
    import gguf

    config = model.config
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for own, tensor in model.state_dict().items():
        if own == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"a GGUF file has no name for the model's tensor {own!r}", hint="leave out --gguf")
        layer = own.split(".")[-2]
        yield name, _interleaved(tensor, heads[layer]) if config.model_type == "llama" and layer in heads else tensor
    factors = _rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * width, ...] in llama.cpp's order of the Llama architecture: dimension i beside i + width / 2."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rope_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """[width / 2]: by what the plain rotary frequencies are divided; None where they are the plain ones."""
    found = model.model.rotary_emb.inv_freq.float()
    exponents = torch.arange(0, 2 * len(found), 2, dtype=torch.float32) / (2 * len(found))
    plain = model.config.rope_parameters["rope_theta"] ** -exponents
    factors = plain / found
    return None if torch.allclose(factors, torch.ones(len(found)), atol=1e-4) else factors
