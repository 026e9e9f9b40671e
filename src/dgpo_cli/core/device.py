"""Torch devices by name, and the precision that is asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dgpo_cli.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch


Precision = Literal["auto", "float32"]
# What torch computes on, by itself or with a package of the card's maker. Its device meta holds no values.
_NAME = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu|mtia|xla|npu|mlu|musa)(:[0-9]{1,3})?")
PRECISION = "auto: bf16 on GPUs, and on CPUs where it is faster; float32 is the same on every CPU"  # as help


def require_device_name(name: str) -> None:
    """Raises ConfigError for a text that names no device. Cheap: whether there is such a device is not asked."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"device {name[:40]!r} is none", hint="give auto, cpu, cuda or cuda:1")


def device_name(given: str | None) -> str | None:
    """What was given, if anything was. Raises ConfigError as `require_device_name` does."""
    if given is not None:
        require_device_name(given)
    return given


def named_device(name: str) -> torch.device:
    """Raises ConfigError for a device that cannot be used."""
    require_device_name(name)
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {first_line(error)}", hint="see `dgpo doctor`; cpu always works"
        ) from error
    return device
