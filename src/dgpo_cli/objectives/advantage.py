"""Credit assignment and clipping over full-length tensors [B, L] and a mask of the tokens that count.

Search-R1 and DGPO pass a mask that includes retrieved tokens; this project passes the written tokens alone. Masked
positions are skipped: value and running advantage are carried over them, so the two agree for gamma = lambda = 1 and
only the latter is right below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgpo_cli.objectives.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


GROUP_EPSILON = 1e-6  # of the reference


def k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Log-ratio of the sampled token: unbiased for KL(policy || other), either sign (Schulman 2020)."""
    return logprobs - other_logprobs


def k3(logprobs: Tensor, other_logprobs: Tensor, clamp: float = 10.0) -> Tensor:
    """exp(r) - 1 - r with r = log other - log policy, clamped as in the reference; never below 0."""
    ratio = other_logprobs - logprobs
    return (ratio.exp() - ratio - 1).clamp(-clamp, clamp)


def whiten(values: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Shift and scale to mean 0 and (Bessel-corrected) variance 1 over the masked tokens of all rows [L]; zero
    elsewhere.

    Fewer than two counted values have no variance and stay as they are; equal ones become 0, whatever a sum rounds to.
    """
    counted = [row[mask] for row, mask in zip(values, masks, strict=True)]
    joined = torch.cat(counted) if counted else torch.zeros(0)
    if len(joined) < 2:
        return list(values)
    if joined.min() == joined.max():
        return [torch.zeros_like(row) for row in values]
    mean, scale = joined.mean(), (joined.var() + 1e-8).rsqrt()
    return [torch.where(mask, (row - mean) * scale, 0.0) for row, mask in zip(values, masks, strict=True)]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016) over the masked tokens of each row.

    Args: rewards, values [B, L]; mask [B, L], 1 where a token counts; a row ends after its last counted token.
    Returns (advantages, returns) [B, L], zero where the mask is 0.
    """
    keep = mask.bool()
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        counts = keep[:, t]
        step = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * running
        running = torch.where(counts, step, running)
        next_value = torch.where(counts, values[:, t], next_value)
        advantages[:, t] = torch.where(counts, step, 0.0)
    return advantages, torch.where(keep, advantages + values, 0.0)


def group_advantages(totals: Tensor, groups: Sequence[str], kind: str = "standardized") -> Tensor:
    """Advantage of each total [B] relative to its group [B]; a group of one keeps its total, and equal
    totals are worth 0, whatever their sum rounds to.

    "standardized" is GRPO's (Shao et al. 2024), "centred" leaves the spread (Liu et al. 2025), "leave-one-out"
    subtracts the mean of the others (Ahmadian et al. 2024).
    """
    result = totals.clone()
    for group in set(groups):
        members = torch.tensor([g == group for g in groups], device=totals.device)
        count = int(members.sum())
        if count > 1 and totals[members].min() == totals[members].max():
            result[members] = 0.0
        elif count > 1:
            centred = totals[members] - totals[members].mean()
            if kind == "standardized":
                centred = centred / (totals[members].std() + GROUP_EPSILON)
            elif kind == "leave-one-out":
                centred = centred * count / (count - 1)
            result[members] = centred
    return result


def clipped_policy_loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    clip: float,
    *,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate per token, and a mask of the tokens that were clipped (Schulman et al. 2017, eq. 7).

    The ratio counts within 1 - clip and 1 + clip_high (Yu et al. 2025; clip by default). With `dual_clip` c a negative
    advantage costs at most c times its size (Ye et al. 2020).
    """
    ratio = (logprobs - behavior_logprobs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, (clipped > unclipped).float()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger squared error per token, of the value and of the value clipped to near the old one."""
    held = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
