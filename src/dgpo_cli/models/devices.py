"""Where training runs: in which processes, and on which device.

Apart from `training/run/tracking.py` the only file that imports accelerate.
"""

from __future__ import annotations

import functools
from datetime import timedelta

import torch
from torch.distributed.fsdp import FSDPModule

from dgpo_cli.core.device import Precision, named_device
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.half import pays_off
from dgpo_cli.models.load import LoadedModel, load_config, load_model
from dgpo_cli.models.processes import Processes
from dgpo_cli.models.reordered import can_reorder, reorder

# A process that waits for another's share of a step is not stuck; if one dies, the launcher ends the others.
PATIENCE = timedelta(hours=2)  # ours


@functools.cache
def world() -> Processes:
    """The processes that `accelerate launch` (or torchrun) started, on a GPU each or on the CPU; else this one alone.

    Raises ConfigError for a launch that training does not support.
    """
    from accelerate import PartialState
    from accelerate.utils import get_int_from_env, parse_flag_from_env

    launched = get_int_from_env(["WORLD_SIZE"], 1) if get_int_from_env(["RANK"], -1) >= 0 else 1
    options = {"timeout": PATIENCE} if launched > 1 else {}
    # Without a GPU accelerate treats several processes as separate runs, unless the CPU is set explicitly.
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available(), **options)
    if state.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, and {state.device} is trained on by one", hint="start one: `dgpo`"
        )
    sharded = launched > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")
    if sharded and parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError("FSDP with weights offloaded to the CPU", hint="launch with --fsdp_offload_params false")
    if sharded and not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(f"FSDP with torch {torch.__version__}", hint="it needs 2.13: pip install -U torch")
    device = torch.device(state.device)
    return Processes(
        state.process_index,
        state.num_processes,
        torch.device("cpu") if device.type == "cpu" else device,
        sharded=sharded,
    )


def leave() -> None:
    """End a run in several processes, once all have arrived here."""
    from accelerate import PartialState

    world().gather(None)
    PartialState().destroy_process_group()


def training_device(name: str = "auto") -> torch.device:
    """`auto` takes what `accelerate` finds; otherwise a torch device name. Raises ConfigError if it is not usable."""
    everyone = world()
    if everyone.size > 1 and name not in ("auto", everyone.device.type):
        raise ConfigError(
            f"device {name!r} for {everyone.size} processes, and {everyone.device} is this one's",
            hint="leave --device out; without GPUs (CUDA_VISIBLE_DEVICES=) they train on the CPU",
        )
    if name == "auto" or everyone.size > 1:
        return everyone.device
    return named_device(name)


def inference_dtype(device: torch.device, model: str | None = None, precision: Precision = "auto") -> torch.dtype:
    """Dtype of a frozen model: bf16 on CUDA, and on a CPU where that pays off for `model`, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if model is not None and pays_off(device, load_config(model), precision) else torch.float32


def load_frozen(
    name: str,
    *,
    device: str,
    precision: Precision = "auto",
    eight_bit: bool = False,
    form: str | None = None,
) -> LoadedModel:
    """A model that is asked and not trained, in the dtype of `inference_dtype`. Raises ModelError, see `load_model`."""
    where = training_device(device)
    dtype = inference_dtype(where, None if eight_bit else name, precision)
    loaded = load_model(name, device=where, dtype=dtype, eight_bit=eight_bit, form=form)
    if can_reorder(where, loaded.model.dtype):
        reorder(loaded.model.get_decoder())
    return loaded
