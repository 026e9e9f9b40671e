"""The next tokens from the new ones: forward passes of one model, or of two that are blended, and the draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.passes import Pass
from dgpo_cli.engine.sampling import sample
from dgpo_cli.objectives.divergence import log_probs, mixture


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Tokens come from share * the second decoder's distribution + (1 - share) * the first's; `share` 0 has one."""

    decoders: Sequence[Decoder]
    vocabulary_size: int
    share: float = 0.0

    def draw(self, new: Pass, uniform: Tensor, temperature: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor]:
        """Token ids [R] and their log-probabilities [R] after each row's last new token; see `sample`."""
        own, *other = (decoder.logits(new, self.vocabulary_size) for decoder in self.decoders)
        logits = self._mixed(own, other[0], temperature) if other else own
        return sample(logits, uniform, temperature, greedy=greedy)

    def _mixed(self, own: Tensor, other: Tensor, temperature: Tensor) -> Tensor:
        """Logits [R, V] whose distribution at each row's temperature is the mixture of both at that temperature."""
        scale = temperature.where(temperature > 0, 1.0)[:, None]
        return mixture(log_probs(other / scale), log_probs(own / scale), self.share) * scale


def tokens_and_logprobs(tokens: Tensor, logprobs: Tensor) -> tuple[list[Any], list[Any]]:
    """Token ids and log-probabilities as lists, in one transfer from a GPU."""
    told = torch.stack((tokens.double(), logprobs.double())).cpu()
    return told[0].long().tolist(), told[1].tolist()
