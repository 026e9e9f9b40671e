"""The models of a run and the optimizers that move them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from dgpo_cli.errors import ConfigError, TrainingError
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.models.lora import add_adapter, freeze_embeddings, has_adapter
from dgpo_cli.models.packed import packed_attention
from dgpo_cli.models.processes import ALONE, Processes
from dgpo_cli.models.ways import WAYS
from dgpo_cli.objectives.base import Objective
from dgpo_cli.training import eight_bit_adam
from dgpo_cli.training.fsdp import full, like, shard, split
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.replay import ReplayBuffer
from dgpo_cli.training.settings import TrainSettings

_MOMENTS = {"exp_avg", "exp_avg_sq", *eight_bit_adam.TENSORS}


class Optimizer:
    """AdamW over one module, with its own schedule, clipping and refusal of gradients that are not finite."""

    def __init__(self, module: torch.nn.Module, settings: OptimizerSettings, total_updates: int) -> None:
        self.settings, self.total_updates, self.updates = settings, total_updates, 0
        self.names, self.parameters = _trainable(module)
        self.adam: torch.optim.Optimizer = (
            eight_bit_adam.make(module, self.parameters) if settings.kind == "adamw-8bit" else _adam(self.parameters)
        )
        for group in self.adam.param_groups:
            group |= {"betas": (settings.beta1, settings.beta2), "weight_decay": settings.weight_decay}

    def take(self, module: torch.nn.Module) -> None:
        """Move on with the module's parameters as they are now; there are no moments yet."""
        self.names, self.parameters = _trainable(module)
        self.adam.param_groups[0] |= {"params": self.parameters, "fused": None}  # parts of tensors are not fused

    def step(self, what: str) -> dict[str, float]:
        """One update; returns learning rate and gradient norm. Raises TrainingError if the norm is not finite."""
        norm = float(full(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the {what} gradient norm is {norm} at update {self.updates}",
                hint="lower the learning rate; the last good state is kept in the run folder",
            )
        lr = self.settings.lr_at(self.updates, self.total_updates)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.updates += 1
        return {f"{what}_lr": lr, f"{what}_grad_norm": norm}

    @property
    def _fused(self) -> bool:
        return bool(self.adam.param_groups[0].get("fused"))

    def state_bytes(self) -> int:
        """Bytes of the moments after the first update."""
        groups = self.adam.param_groups
        return sum(2 * p.numel() * group.get("optim_bits", 32) // 8 for group in groups for p in group["params"])

    def tensors(self) -> dict[str, Tensor]:
        """Moments, and the scales of 8-bit ones, by parameter name; for a checkpoint. Every process has to ask."""
        state = self.adam.state
        return {
            f"{moment}.{name}": full(value)
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for moment, value in state.get(parameter, {}).items()
            if moment in _MOMENTS
        }

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Inverse of `tensors`. Raises KeyError if a moment is missing."""
        self.updates = updates
        self.adam.state.clear()
        if not updates:
            return
        if self.settings.kind == "adamw-8bit":
            eight_bit_adam.begin(self.adam, updates)
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state = self.adam.state[parameter]
            if not state:
                step = torch.tensor(float(updates), device=parameter.device if self._fused else "cpu")
                state |= {"step": step, "exp_avg": None, "exp_avg_sq": None}
            for moment in _MOMENTS & state.keys():
                state[moment] = like(parameter, tensors[f"{moment}.{name}"])


def _adam(parameters: list[torch.nn.Parameter]) -> AdamW:
    """On CUDA one kernel goes over all tensors, without a temporary of their size; see `Ways`."""
    return AdamW(parameters, fused=True if WAYS.fused_adam and parameters[0].is_cuda else None)


def _trainable(module: torch.nn.Module) -> tuple[list[str], list[torch.nn.Parameter]]:
    pairs = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [name for name, _ in pairs], [p for _, p in pairs]


def restrict(model: PreTrainedModel, settings: TrainSettings) -> None:
    """Leave only what the settings train of a student; before optimizers, critics and copies are made of it.

    Raises ConfigError for an adapter that the model cannot take.
    """
    if settings.lora.rank is not None:
        add_adapter(model, settings.lora, seed=settings.seed)
    elif settings.freeze_embeddings:
        freeze_embeddings(model)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Trade a second forward pass for activation memory, while `training_mode` holds; these models have no dropout."""
    # The second pass happens inside the backward pass, where nothing else says that its sequences are packed.
    again = lambda: (nullcontext(), packed_attention(model))  # noqa: E731
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": again})


@contextmanager
def training_mode(learner: Learner) -> Iterator[None]:
    """Checkpointed models in training mode, where alone they checkpoint; a rollout would lose its cache there."""
    # The model's own property for it has another name from one release of transformers to the next, and warns.
    checkpointed = [
        model
        for model in learner.bodies
        if any(vars(part).get("gradient_checkpointing", False) for part in model.modules())
    ]
    for model in checkpointed:
        model.train()
    try:
        yield
    finally:
        for model in checkpointed:
            model.eval()


@dataclass(slots=True)
class Learner:
    """A student under training. `teacher` and `reference` are frozen; `critic` has its own optimizer."""

    objective: Objective
    codec: Codec
    student: PreTrainedModel
    policy_optimizer: Optimizer
    teacher: PreTrainedModel | None = None
    reference: PreTrainedModel | None = None
    critic: Critic | SharedCritic | None = None
    value_optimizer: Optimizer | None = None
    replay: ReplayBuffer | None = None
    world: Processes = ALONE  # the processes that train it together
    micro_batch_tokens: int = 16_384  # tokens per forward and backward pass
    chunk_tokens: int = 256  # tokens whose distributions exist at once
    temperature: float = 1.0  # of the rollouts; log-probabilities are taken at the same
    engine_logprobs: bool = False  # the behavior policy's are the engine's, where it has them

    @property
    def bodies(self) -> list[PreTrainedModel]:
        """The transformers under training: the student's, and that of a critic of its own."""
        return [self.student] + ([self.critic.backbone] if isinstance(self.critic, Critic) else [])

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        yield "policy", self.policy_optimizer
        if self.value_optimizer is not None:
            yield "value", self.value_optimizer

    def trained(self) -> list[torch.nn.Module]:
        return [self.student] if self.critic is None else [self.student, self.critic]

    def shard(self) -> None:
        """Split what is trained over the processes, where that was asked for; before a saved state is loaded.

        Raises ConfigError for what cannot be split.
        """
        if self.world.sharded:
            refused = {
                "adamw-8bit": any(optimizer.settings.kind != "adamw" for _, optimizer in self.optimizers()),
                "critic = shared": isinstance(self.critic, SharedCritic),
                "lora.rank": has_adapter(self.student),
            }
            if found := [name for name, given in refused.items() if given]:
                raise ConfigError(
                    f"sharded training does not work with {found[0]}",
                    hint="launch without --use_fsdp, or leave out that setting",
                )
            for model, (_, optimizer) in zip(self.trained(), self.optimizers(), strict=True):
                shard(model, self.device)
                with split([model]):
                    optimizer.take(model)
