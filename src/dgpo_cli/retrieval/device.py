"""Where encoders, exact search and rerankers compute. One choice for the process: what runs beside them shares it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_cli.core.device import named_device

if TYPE_CHECKING:
    import torch

_name, _gpu = "auto", 0


def use_device(name: str, *, local_rank: int | None = None) -> None:
    """Whatever is opened from now on computes on this torch device; `auto` is a GPU if there is one.

    Of several, `auto` takes the first, or that of `local_rank`, the number of this process on its machine.
    """
    global _name, _gpu
    _name, _gpu = name, local_rank or 0


def device() -> torch.device:
    """Raises ConfigError for a device that cannot be used."""
    import torch

    if _name == "auto":
        return (
            torch.device("cuda", _gpu % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
        )
    return named_device(_name)
