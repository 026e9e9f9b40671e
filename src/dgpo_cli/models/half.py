"""bf16 on a CPU: linear maps, and keys and values, of models that are wide enough for it to pay off.

A processor with AMX or AVX512-BF16 multiplies in bf16 and adds up in float32. A trained model keeps float32 masters,
and its norms, residual stream, softmax and losses stay in float32, as on a GPU; a model that is only read is loaded in
bf16. Narrow models stay in float32: their products are too small to gain by it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.device import Precision

if TYPE_CHECKING:
    import torch

# ours: from this width on a layer's products are at least twice as fast for 8 rows, and four times for 512 (measured)
WIDE = 512
_FLAGS = {"avx512_bf16", "amx_bf16"}
_CPUINFO = Path("/proc/cpuinfo")


@cache
def processor_has_bf16() -> bool:
    """Whether the processor multiplies in bf16; False where that is unknown."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _FLAGS.isdisjoint(flags)


def pays_off(device: torch.device, config: Any, precision: Precision) -> bool:
    """Whether a model of this configuration is to be computed in bf16 on a CPU."""
    return pays_off_for(device.type, int(getattr(config.get_text_config(), "hidden_size", 0)), precision)


def pays_off_for(device: str, hidden: int, precision: Precision) -> bool:
    """As `pays_off`, from the kind of a device and a model's width, without torch."""
    return precision == "auto" and device == "cpu" and hidden >= WIDE and processor_has_bf16()


def compute_in_half(model: torch.nn.Module) -> None:
    """Mark a model with float32 masters; copies of it are marked too."""
    model.computes_in_half = True  # type: ignore[assignment]


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """Dtype of linear maps: bf16 for float32 masters on CUDA and for marked models, else the parameters' own."""
    import torch

    parameter = next(model.parameters())
    marked = parameter.device.type == "cuda" or vars(model).get("computes_in_half", False)
    return torch.bfloat16 if parameter.dtype == torch.float32 and marked else parameter.dtype
