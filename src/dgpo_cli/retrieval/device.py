"""The device of encoders, exact search and rerankers: one choice for the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_cli.core.device import named_device, require_device_name

if TYPE_CHECKING:
    import torch

_name = "auto"


def use_device(name: str, *, local_rank: int | None = None) -> None:
    """Set the torch device of everything that is opened later; `auto` is a GPU if there is one.

    Of several, `auto` takes the one that this process is on, where it also trains. `local_rank`, the number of this
    process on its machine, puts it on one. Raises ConfigError for a text that names no device.
    """
    require_device_name(name)
    global _name
    _name = name
    if local_rank is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())


def device() -> torch.device:
    """Raises ConfigError for a device that cannot be used."""
    import torch

    if _name == "auto":
        gpu = torch.cuda.is_available()
        return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    return named_device(_name)
