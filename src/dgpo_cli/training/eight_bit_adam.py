"""AdamW with block-wise quantized 8-bit moments (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes.

As the paper advises, embeddings keep 32-bit moments, and so do tensors of fewer than 4,096 values. Weights, gradients
and the update itself are float32 throughout.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from dgpo_cli.errors import ConfigError, first_line

TENSORS = ("state1", "state2", "absmax1", "absmax2")  # of one parameter; what else there is follows from them


def make(module: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of two groups: embeddings with 32-bit moments, the rest with 8-bit ones.

    Raises ConfigError where bitsandbytes is missing or cannot work on the parameters' device.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels that nothing here asks for
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"adamw-8bit needs bitsandbytes: {error}", hint="pip install bitsandbytes, or -o optimizer=adamw"
        ) from error

    class Adam(AdamW8bit):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            # bitsandbytes would remember exceptions by id(), which another parameter may get later.
            inherited: Any = super()
            config: dict[str, Any] = inherited.get_config(gindex, pindex, group)
            return config | {"optim_bits": group["optim_bits"]}

    wide = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    groups = [
        {"params": [p for p in parameters if (id(p) in wide) == (bits == 32)], "optim_bits": bits} for bits in (32, 8)
    ]
    adam: Any = Adam
    _try(adam, parameters[0].device)
    return adam([group for group in groups if group["params"]])  # type: ignore[no-any-return]


def _try(adam: Any, device: torch.device) -> None:
    """One update of a throwaway parameter: whether there is a kernel for a device is known only by calling it."""
    parameter = torch.nn.Parameter(torch.zeros(4096, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        adam([{"params": [parameter], "optim_bits": 8}]).step()
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise ConfigError(
            f"bitsandbytes has no 8-bit AdamW for {device.type}: {first_line(error)}",
            hint="take -o optimizer=adamw, or another device",
        ) from error


def begin(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Give every parameter the state that it has after `updates` steps, but for the values of `TENSORS`."""
    bitsandbytes_optimizer: Any = optimizer
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            bitsandbytes_optimizer.init_state(group, parameter, number, place)
            optimizer.state[parameter]["step"] = updates
