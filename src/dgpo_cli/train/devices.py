"""Where training runs. Apart from `pipelines/tracking.py` the only file that imports accelerate."""

from __future__ import annotations

import torch

from dgpo_cli.errors import ConfigError


def training_device(name: str = "auto") -> torch.device:
    """`auto` takes what `accelerate` finds; otherwise a torch device name. Raises ConfigError if it is not usable."""
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes > 1:
        raise ConfigError(
            f"{state.num_processes} processes were launched, training runs in one",
            hint="start it with `dgpo`, or `accelerate launch --num_processes 1 -m dgpo_cli`",
        )
    if name == "auto":
        return torch.device(state.device)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", hint="see `dgpo doctor`; cpu always works"
        ) from error
    return device


def inference_dtype(device: torch.device) -> torch.dtype:
    """Of a model that is only read: bf16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
