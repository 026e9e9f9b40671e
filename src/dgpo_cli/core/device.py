"""Torch devices by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch


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
