"""Torch devices by name, and the precision that is asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch


Precision = Literal["auto", "float32"]
_NAME = re.compile(r"(?!meta)[a-z]{2,20}(:[0-9]{1,3})?")  # meta holds no values
PRECISION = "auto: bf16 on GPUs, and on CPUs where it is faster; float32 is the same on every CPU"  # as help


def require_device_name(name: str) -> None:
    """Raises ConfigError for a text that names no device. Cheap: whether there is such a device is not asked."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"device {name[:40]!r} is none", hint="give auto, cpu, cuda or cuda:1")


def named_device(name: str) -> torch.device:
    """Raises ConfigError for a device that cannot be used."""
    require_device_name(name)
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", hint="see `dgpo doctor`; cpu always works"
        ) from error
    return device
