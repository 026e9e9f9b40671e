"""Low-rank adapters by peft (Hu et al. 2021, arXiv 2106.09685), trained instead of a model's linear maps.

Code that reads weights without the model's forward pass sees them with the adapter merged: rollouts read a copy that is
refreshed after every update, and a model is saved merged, so that loading it does not need peft.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dgpo_cli.core import extras
from dgpo_cli.models.lora_options import LoraOptions


def add_adapter(model: PreTrainedModel, options: LoraOptions, *, seed: int) -> None:
    """Freeze the model and give it an adapter that is drawn from `seed` and changes nothing yet.

    Raises ConfigError for maps that the model does not have, a rank above the width of one, and without peft.
    """
    assert options.rank is not None
    extras.require("peft", "lora", "lora.rank")
    maps = _linear_maps(model)
    options.require_maps(maps)
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = options.scale * options.rank  # peft divides it by the rank; it need not be whole
    config = LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=list(options.maps))
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:  # as peft draws them (He et al. 2015), but the same on every device
                bound = parameter.shape[1] ** -0.5
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
    model.eval()


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Train neither the embedding of tokens nor the output layer, tied to it or not."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            module.weight.requires_grad_(False)


def has_adapter(model: nn.Module) -> bool:
    return any(_is_adapted(module) for module in model.modules())


@torch.no_grad()
def merged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the model by name, with the adapter merged into them.

    Those that an adapter changes are copies; the others are the model's own.
    """
    changed = {f"{name}.base_layer.weight": module for name, module in model.named_modules() if _is_adapted(module)}
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            module: Any = changed.get(name)
            added = None if module is None else module.get_delta_weight(module.active_adapters[0])
            found[name.replace(".base_layer.", ".")] = parameter if added is None else parameter + added
    return found


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")


def _linear_maps(model: PreTrainedModel) -> dict[str, int]:
    """Linear maps of the layers by the last part of their names, and the smaller of their widths."""
    found: dict[str, int] = {}
    for name, module in model.get_decoder().named_modules():
        if isinstance(module, nn.Linear):
            found.setdefault(name.rpartition(".")[2], min(module.weight.shape))
    return found
