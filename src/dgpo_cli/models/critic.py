"""Value functions of PPO: a scalar head on the body of a language model of its own, or on the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.packed import Packed


class Critic(nn.Module):
    """`backbone` becomes the critic's own; hand it a copy. The head is drawn from `seed`."""

    def __init__(self, backbone: PreTrainedModel, *, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        # The vocabulary head is not part of a value function; where it is tied it stays as the input embedding.
        head = backbone.get_output_embeddings()
        if head is not None and head.weight is not backbone.get_input_embeddings().weight:
            head.weight.requires_grad_(False)
        self.head = _value_head(backbone, seed)

    def forward(self, packed: Packed) -> Tensor:
        """Values [M] in float32 of packed sequences; entry t is the value of the state after token t was read."""
        return _values(self.head, hidden_states(self.backbone, packed))


class SharedCritic(nn.Module):
    """A head on the student's hidden states; its gradient stops there, so the policy learns as with any other critic.

    Without a stop the value loss would compete with the policy for the body (Cobbe et al. 2021, arXiv 2009.04416,
    which also stops it where both share a network). A deviation from the paper, whose critic is a model of its own; a
    linear function of what the policy attends to is a weaker one.
    """

    def __init__(self, student: PreTrainedModel, *, seed: int) -> None:
        super().__init__()
        self.head = _value_head(student, seed)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [N] in float32 from the student's hidden states [N, H]."""
        return _values(self.head, hidden.detach())


def _value_head(body: PreTrainedModel, seed: int) -> nn.Linear:
    """The head, in float32: bf16 could not distinguish values that differ by less than 0.4 %."""
    width = body.config.get_text_config().hidden_size
    head = nn.Linear(width, 1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        head.weight.normal_(std=width**-0.5 / 10, generator=generator)
        head.bias.zero_()
    return head.to(device=next(body.parameters()).device)


def _values(head: nn.Linear, hidden: Tensor) -> Tensor:
    values: Tensor = head(hidden.float()).squeeze(-1)
    return values
