"""PPO quantities of the DGPO reference, on its own mask: every response token, retrieved ones included."""

import pytest
import torch

from dgpo_cli.core.types import Score
from dgpo_cli.objectives import advantage
from dgpo_cli.objectives.base import ScoredEpisode, TokenBatch
from dgpo_cli.objectives.dgpo import DGPO
from dgpo_cli.objectives.ppo import PPO
from golden.reference import VECTORS, close

CASES = pytest.mark.parametrize("case", VECTORS["ppo"], ids=range(len(VECTORS["ppo"])))


def tensors(case):
    return {name: torch.tensor(value) for name, value in case.items() if name != "grpo_group"}


@CASES
def test_kl_estimators(case):
    v = tensors(case)
    close(advantage.k1(v["old_logprob"], v["teacher_logprob"]), v["kl_k1"], "k1")
    close(advantage.k3(v["old_logprob"], v["teacher_logprob"]), v["kl_k3_clamped"], "k3")


def episodes(v):
    """Rows as rollouts; the score sits on the last response token in the reference."""
    return [
        ScoredEpisode(
            group=str(row),
            score=Score(float(v["scores"][row].sum()), bool(v["correct"][row])),
            written=v["policy_token_mask"][row].bool(),
            behavior_logprobs=v["old_logprob"][row],
            teacher_logprobs=v["teacher_logprob"][row],
            reference_logprobs=v["teacher_logprob"][row],
        )
        for row in range(len(v["scores"]))
    ]


@CASES
def test_token_rewards(case):
    """The gated form is DGPO's; paying on every episode is PPO with the teacher as its reference."""
    v = tensors(case)
    gated, uniform = (kind(kind.Config(kl_coef=case["beta"])) for kind in (DGPO, PPO))
    for row, episode in enumerate(episodes(v)):
        for objective, expected in ((gated, v["dgpo_token_rewards"]), (uniform, v["uniform_token_rewards"])):
            close(objective.token_rewards(episode), expected[row], f"row {row} of {type(objective).__name__}")


@CASES
@pytest.mark.parametrize(("gamma", "lam", "name"), [(1.0, 1.0, "gamma1_lambda1"), (0.99, 0.95, "gamma0_99_lambda0_95")])
def test_advantages_and_returns(case, gamma, lam, name):
    v = tensors(case)
    mask = v["response_mask"]
    advantages, returns = advantage.gae(v["dgpo_token_rewards"], v["values"], mask, gamma=gamma, lam=lam)
    whitened = torch.stack(advantage.whiten([*advantages], [*mask.bool()]))
    # The reference moves along what its mask leaves out, which nothing reads.
    close(whitened, v[f"advantages_whitened_{name}"] * mask, "advantages")
    close(returns, v[f"returns_{name}"], "returns")


@CASES
def test_losses(case):
    v = tensors(case)
    mask, count = v["policy_token_mask"].bool(), v["policy_token_mask"].sum()
    surrogate, clipped = advantage.clipped_policy_loss(
        v["new_logprob"], v["old_logprob"], v["advantages_whitened_gamma1_lambda1"], 0.2
    )
    close(surrogate[mask].sum() / count, v["policy_loss_clip0_2"], "policy loss")
    close(clipped[mask].sum() / count, v["clip_fraction"], "clip fraction")
    close((v["old_logprob"] - v["new_logprob"])[mask].sum() / count, v["approx_kl"], "approximate kl")
    value_loss = advantage.clipped_value_loss(v["new_values"], v["values"], v["returns_gamma1_lambda1"], 0.5)
    close(value_loss[v["response_mask"].bool()].mean(), v["value_loss_clip0_5"], "value loss")


@CASES
def test_losses_through_the_objective(case):
    """The same numbers from PPO as it is registered, fed with flat tokens and no entropy bonus."""
    v = tensors(case)
    mask = v["policy_token_mask"].bool()
    tokens = TokenBatch(
        token_ids=torch.zeros(int(mask.sum()), dtype=torch.long),
        logprobs=v["new_logprob"][mask],
        log_probs=torch.full((int(mask.sum()), 3), 1 / 3).log(),
        weights=torch.ones(int(mask.sum())),
        sequence_index=mask.nonzero()[:, 0],
        behavior_logprobs=v["old_logprob"][mask],
        advantages=v["advantages_whitened_gamma1_lambda1"][mask],
    )
    result = PPO(PPO.Config(entropy_coef=0.0)).loss(tokens)
    close(result.terms["policy"].mean(), v["policy_loss_clip0_2"], "policy loss")
    close(result.metrics["clip_fraction"].mean(), v["clip_fraction"], "clip fraction")
    close(result.metrics["behavior_kl"].mean(), v["approx_kl"], "approximate kl")


@CASES
def test_group_advantages(case):
    v = tensors(case)
    ours = advantage.group_advantages(v["scores"].sum(dim=1), case["grpo_group"])
    close(ours[:, None] * v["response_mask"], v["grpo_advantages"], "grpo")
