"""Outputs of a frozen model must be finite: 8-bit maps and 16-bit ranges overflow on some models' activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dgpo_cli.errors import ModelError


def require_finite(teacher: PreTrainedModel, values: Tensor, what: str) -> None:
    """Raises ModelError, which names the teacher, if one of `values` is not finite."""
    if bool(torch.isfinite(values).all()):
        return
    eight_bit = getattr(teacher, "is_quantized", False)
    kind = "in 8 bit" if eight_bit else f"in {str(teacher.dtype).removeprefix('torch.')}"
    share = float((~torch.isfinite(values)).float().mean())
    raise ModelError(
        f"teacher {teacher.name_or_path or type(teacher).__name__} ({kind}): {share:.1%} of its {what} are not finite",
        hint="leave out --teacher-8bit" if eight_bit else "check the teacher's weights, or give another --teacher",
    )


def require_probabilities(model: PreTrainedModel, logprobs: Sequence[float]) -> None:
    """Raises ModelError, which names the model, where its tokens have no probability: its draws mean nothing."""
    if not all(map(math.isfinite, logprobs)):
        raise ModelError(
            f"{model.name_or_path or type(model).__name__} computes probabilities that are no numbers",
            hint="check its weights and the numbers in its config.json, and that the temperature is not tiny",
        )
