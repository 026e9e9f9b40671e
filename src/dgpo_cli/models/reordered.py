"""Linear maps of frozen bf16 weights on a CPU, kept in the order in which oneDNN's kernels read them.

A plain product brings its weights into that order on every call, which takes longer than the product itself while
there are only a few rows: each token of a rollout pays for it. Results are the same but for the order of sums, and with
torch 2.13 on AMX to the last bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 8  # ours: the order is chosen for so many; other numbers are as fast in it (1 to 512 measured)


class Reordered(nn.Module):
    """A linear map from bf16 [..., I] to [..., O]; without gradient. It has no weights before `take`."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._ordered: Tensor

    @property
    def weight(self) -> Tensor:
        """A copy [O, I] in plain order."""
        return self._ordered.to_dense()

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Keep the values of [O, I], rounded to bf16."""
        plain = weight.detach().to(torch.bfloat16).contiguous()
        self._ordered = torch.ops.mkldnn._reorder_linear_weight(plain, _ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._ordered, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Reordered:
        other = Reordered(copy.deepcopy(self.bias, memo))
        other.take(self.weight)
        return other

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight


def can_reorder(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def reorder(model: nn.Module) -> dict[str, Reordered]:
    """Replace the linear maps of a model that is never trained, and return the new ones by name.

    Those without values, on the device meta, have none before `take`. Each old map is freed before the next is read.
    """
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    replaced = {}
    for name in names:
        linear: Any = model.get_submodule(name)
        replaced[name] = Reordered(linear.bias)
        if not linear.weight.is_meta:
            replaced[name].take(linear.weight)
        model.set_submodule(name, replaced[name])
    return replaced
