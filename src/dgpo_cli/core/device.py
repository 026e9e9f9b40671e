"""Torch devices by name, and the precision that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch


Precision = Literal["auto", "float32"]
PRECISION = "auto: bf16 on GPUs, and on CPUs where it is faster; float32 is the same on every CPU"  # as help


def named_device(name: str) -> torch.device:
    """Raises ConfigError for a device that cannot be used."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", hint="see `dgpo doctor`; cpu always works"
        ) from error
    return device
