"""The weights that generation reads: a model's parameters in place, or a copy of float32 masters or adapted weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from dgpo_cli.models.half import compute_dtype
from dgpo_cli.models.lm_head import head_weight
from dgpo_cli.models.lora import has_adapter, merged_parameters
from dgpo_cli.models.reordered import Reordered, can_reorder, reorder


class Weights:
    """`dtype` is that of linear maps and of the cache: by default the model's, or bf16 for float32 masters.

    A model of that dtype is read in place, so nothing is copied and nothing can be stale. Of another one, or one with
    an adapter, the values are taken into a model of the same shape by `refresh`: reading masters in place would move
    twice the bytes for each token, and round them each time, and an adapter would be three products for one.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
        parameter = next(model.parameters())
        self.device, self.residual = parameter.device, parameter.dtype
        dtype = compute_dtype(model) if dtype is None else dtype
        self.dtype = dtype
        self._model = model
        self._rounded: Any = None
        self._reordered: dict[str, Reordered] = {}
        if dtype != parameter.dtype or has_adapter(model):
            with torch.device("meta"):
                body = AutoModel.from_config(model.get_decoder().config, dtype=dtype)
            if can_reorder(self.device, dtype):
                self._reordered = reorder(body)
            self._rounded = body.to_empty(device=parameter.device).requires_grad_(False).eval()
            tied = head_weight(model) is model.get_input_embeddings().weight
            self._rounded_head = body.get_input_embeddings().weight if tied else head_weight(model).detach().to(dtype)

    @property
    def body(self) -> Any:
        """Embedding, layers and last norm."""
        return self._model.get_decoder() if self._rounded is None else self._rounded

    @property
    def head(self) -> Tensor:
        """Output layer [V, H]."""
        return head_weight(self._model) if self._rounded is None else self._rounded_head

    @property
    def eight_bit(self) -> bool:
        return getattr(self._model, "is_quantized", False)

    def refresh(self) -> None:
        """Copy the masters' values. Between two calls all readers see the same weights."""
        if self._rounded is None:
            return
        source = merged_parameters(self._model.get_decoder())  # other objects after a sharded update
        names, targets = zip(*self._rounded.named_parameters(), strict=True)
        torch._foreach_copy_(list(targets), [source[name].detach() for name in names])
        for name, linear in self._reordered.items():
            linear.take(source[f"{name}.weight"])
        if self._rounded_head is not self._rounded.get_input_embeddings().weight:
            self._rounded_head.copy_(head_weight(self._model).detach())

    def places(self) -> tuple[int, ...]:
        """Addresses of the parameters; captured graphs are invalid once these change."""
        return (self.head.data_ptr(), *(parameter.data_ptr() for parameter in self.body.parameters()))
