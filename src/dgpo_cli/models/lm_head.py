"""Hidden states to per-token quantities, in chunks of tokens, so that nothing vocabulary-sized outlives a chunk.

Shapes: M tokens of a micro-batch, H hidden, N trained tokens of it, n of one chunk, V tokenizer length.
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
from dgpo_cli.models.half import compute_dtype
from dgpo_cli.models.packed import Packed, packed_attention


def precision(model: torch.nn.Module) -> AbstractContextManager[object]:
    """Autocast to `compute_dtype` where that is not the parameters' own."""
    parameter, dtype = next(model.parameters()), compute_dtype(model)
    return nullcontext() if dtype == parameter.dtype else torch.autocast(parameter.device.type, dtype)


def compute_head(model: PreTrainedModel) -> Tensor:
    """Output layer [V', H] in the dtype of the computation; made once for all chunks of a micro-batch."""
    return head_weight(model).detach().to(compute_dtype(model))


def hidden_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Last hidden states [M, H] of packed sequences."""
    # Under training a model may be sharded, and is entered then where its weights are brought together.
    decoder = getattr(model, "sharded_decoder", None) or model.get_decoder()
    with precision(model), packed_attention(model):
        output = decoder(
            input_ids=packed.input_ids[None],
            position_ids=packed.positions[None],
            use_cache=False,
            **packed.attention_arguments(),
        )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


@torch.no_grad()
def project(
    model: PreTrainedModel,
    hidden: Tensor,
    vocabulary_size: int,
    temperature: float = 1.0,
    *,
    out: Tensor | None = None,
    head: Tensor | None = None,
) -> Tensor:
    """Logits [n, V] in float32 from hidden states [n, H], divided by the temperature, without gradient.

    `head` is `compute_head(model)`, where the caller has it.

    `out` [m, V], m not below n, is reused on a CPU, where the system would map memory of this size again each time,
    page by page.
    """
    weight = compute_head(model) if head is None else head
    weight = weight[:vocabulary_size]
    if out is None or weight.device.type != "cpu":
        logits = functional.linear(hidden.to(weight.dtype), weight).float()
    elif weight.dtype == torch.float32:
        logits = torch.mm(hidden, weight.T, out=out[: len(hidden)])
    else:
        logits = out[: len(hidden)].copy_(functional.linear(hidden.to(weight.dtype), weight))
    return logits if temperature == 1 else logits.div_(temperature)


def head_weight(model: PreTrainedModel) -> Tensor:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings", hint="use a causal language model")
    return head.weight  # type: ignore[no-any-return]


@torch.no_grad()
def logits_gradient(
    probs: Tensor,
    token_ids: Tensor,
    grad_log_probs: Tensor | None,
    grad_logprobs: Tensor | None,
    temperature: float,
) -> Tensor:
    """Gradient [r, V] with respect to the logits of a distribution.

    `grad_log_probs` [r, V] is the gradient with respect to its logarithm, `grad_logprobs` [r] that with respect to the
    written token's alone. Uses up `probs` [r, V]: autograd would hold three more tensors of its size.
    """
    total = probs.new_zeros(len(probs), 1)
    if grad_log_probs is not None:
        total += grad_log_probs.sum(dim=1, keepdim=True)
    if grad_logprobs is not None:
        total += grad_logprobs[:, None]
    grad = probs.mul_(-total)  # through the normalization: d log p(v) / d z(u) = [u = v] - p(u)
    if grad_log_probs is not None:
        grad += grad_log_probs
    if grad_logprobs is not None:
        grad.scatter_add_(1, token_ids[:, None], grad_logprobs[:, None])
    if temperature != 1:
        grad /= temperature
    return grad


@torch.no_grad()
def backward_to_hidden(model: PreTrainedModel, hidden: Tensor, grad: Tensor, *, head: Tensor | None = None) -> Tensor:
    """Gradient of hidden states [n, H] from the gradient of their logits [n, V].

    The gradient of the output layer is added to its `grad` in place: autograd would need two temporaries of the size of
    the output layer for every chunk.
    """
    weight, size = head_weight(model), grad.shape[1]
    head = compute_head(model) if head is None else head
    compute = head.dtype
    grad, inputs = grad.to(compute), hidden.to(compute)
    grad_hidden = (grad @ head[:size]).to(hidden.dtype)
    if weight.requires_grad:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if weight.dtype == compute:
            weight.grad[:size].addmm_(grad.T, inputs)
        else:
            weight.grad[:size] += grad.T @ inputs
    return grad_hidden


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
    head = compute_head(model)
    parts = [
        gather_logprobs(project(model, hidden[rows], vocabulary_size, temperature, head=head), token_ids[rows])
        for rows in chunks(len(token_ids), chunk_size)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
