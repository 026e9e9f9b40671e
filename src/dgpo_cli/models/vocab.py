"""Hidden states to per-token quantities, in chunks of tokens, so that nothing vocabulary-sized outlives a chunk.

Shapes: B batch, T padded length, H hidden, N trained tokens of a micro-batch, n of one chunk, V tokenizer length.
Models of one family pad their vocabulary to different widths (Qwen2.5 0.5B and 7B), and untrained ids must never get
probability, so every projection is cut to the tokenizer's length V.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dgpo_cli.errors import ModelError


def precision(model: torch.nn.Module) -> AbstractContextManager[object]:
    """bf16 autocast for float32 parameters on CUDA (float32 masters stay in the optimizer), nothing elsewhere."""
    parameter = next(model.parameters())
    if parameter.device.type == "cuda" and parameter.dtype == torch.float32:
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [B, T, H] for right-padded ids [B, T]."""
    # Under training a model may be sharded, and is entered then where its weights are brought together.
    decoder = getattr(model, "sharded_decoder", None) or model.get_decoder()
    with precision(model):
        output = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


def project(model: PreTrainedModel, hidden: Tensor, vocabulary_size: int, temperature: float = 1.0) -> Tensor:
    """Logits [n, V] in float32 from hidden states [n, H], divided by the temperature."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings", hint="use a causal language model")
    with precision(model):
        logits = functional.linear(hidden.to(head.weight.dtype), head.weight[:vocabulary_size])
    return logits.float() / temperature


def chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def gather_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """log p(token) [n] from float32 logits [n, V]."""
    return logits.gather(1, token_ids[:, None]).squeeze(1) - logits.logsumexp(dim=1)


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel,
    hidden: Tensor,
    token_ids: Tensor,
    *,
    vocabulary_size: int,
    chunk_size: int,
    temperature: float = 1.0,
) -> Tensor:
    """log p(token) [N] without gradient from hidden states [N, H]."""
    parts = [
        gather_logprobs(project(model, hidden[rows], vocabulary_size, temperature), token_ids[rows])
        for rows in chunks(len(token_ids), chunk_size)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
