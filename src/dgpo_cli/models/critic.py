"""The value function of PPO: the body of a causal language model with a fresh scalar head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dgpo_cli.models.packed import Packed
from dgpo_cli.models.vocab import hidden_states


class Critic(nn.Module):
    """`backbone` becomes the critic's own; hand it a copy. The head is drawn from `seed`."""

    def __init__(self, backbone: PreTrainedModel, *, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        # The vocabulary head is not part of a value function; where it is tied it stays as the input embedding.
        head = backbone.get_output_embeddings()
        if head is not None and head.weight is not backbone.get_input_embeddings().weight:
            head.weight.requires_grad_(False)
        width = backbone.config.get_text_config().hidden_size
        parameter = next(backbone.parameters())
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.head.weight.normal_(std=width**-0.5 / 10, generator=generator)
            self.head.bias.zero_()
        self.head.to(
            device=parameter.device
        )  # float32: bf16 could not tell values apart that differ by less than 0.4 %

    def forward(self, packed: Packed) -> Tensor:
        """Values [M] in float32 of packed sequences; entry t is the value of the state after token t was read."""
        hidden = hidden_states(self.backbone, packed)
        values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values
