"""Fully sharded data parallelism (arXiv 2304.11277, torch's FSDP2) for the models that are trained.

While an update is computed, each process keeps its part of weights, gradients and moments and gets a layer's weights
from the others when it needs them. Between updates every process has the weights whole: rollouts and scoring make
different numbers of passes in each process, and nobody could wait for the others in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.packed import Packed


def shard(model: nn.Module, device: torch.device) -> None:
    """Split a causal language model, or a critic around one, over all processes; its weights stay whole for now.

    Its parameters are other objects while they are split, so an optimizer has to be bound to them again.
    """
    body = model if isinstance(model, PreTrainedModel) else model.get_submodule("backbone")
    assert isinstance(body, PreTrainedModel)
    for layer in body.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # sums, not means: the loss is divided by the weight of the whole update
        part.set_force_sum_reduction_for_comms(True)
    if model is body:  # hidden states are computed past `forward`, by a method that has to know
        decoder = body.get_decoder()
        model.sharded_decoder = MethodType(lambda _, **inputs: decoder(**inputs), model)  # type: ignore[assignment]
        register_fsdp_forward_method(model, "sharded_decoder")
    # The first pass registers the root module with the layers; rollouts begin further down.
    token = Packed.of([torch.zeros(1, dtype=torch.long)], device)
    with torch.no_grad():
        hidden_states(body, token) if model is body else model(token)
    _unite(model)


@contextmanager
def split(models: Sequence[nn.Module]) -> Iterator[None]:
    """Sharded models in parts while it holds, whole after it. What it raises ends the run: the others cannot follow."""
    sharded = [model for model in models if isinstance(model, FSDPModule)]
    for model in sharded:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)  # the head is read between the passes of the body
        # Parts again, and no memory of the passes since: in each process it is another, and would be prefetched by.
        model.reset_iter_state()
    yield
    for model in sharded:
        _unite(model)


def _unite(model: Any) -> None:
    model.set_reshard_after_forward(False)
    for part in _parts(model):
        part.unshard()


def _parts(model: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in model.modules() if isinstance(part, FSDPModule))


def full(tensor: Tensor) -> Tensor:
    """The whole of a split tensor; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor split as `parameter` is, if it is, and where it is."""
    whole = whole.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
