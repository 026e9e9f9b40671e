import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_cli.objectives.advantage import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    k1,
    k3,
    whiten,
)


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k} over a list without gaps."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.booleans()), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_masked_tokens_do_not_exist_for_the_advantages(rows, gamma, lam):
    """Equal to the definition on the sequence with the masked tokens taken out, whatever stands at them."""
    width = max(map(len, rows))
    rewards, values, mask = (torch.zeros(len(rows), width) for _ in range(3))
    for i, row in enumerate(rows):
        for t, (reward, value, counts) in enumerate(row):
            rewards[i, t], values[i, t], mask[i, t] = reward, value, float(counts)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for i, row in enumerate(rows):
        kept = [(t, reward, value) for t, (reward, value, counts) in enumerate(row) if counts]
        expected = gae_by_definition([k[1] for k in kept], [k[2] for k in kept], gamma, lam)
        for (t, _, value), wanted in zip(kept, expected, strict=True):
            assert advantages[i, t] == pytest.approx(wanted, abs=1e-4)
            assert returns[i, t] == pytest.approx(wanted + value, abs=1e-4)
    assert not advantages[mask == 0].any() and not returns[mask == 0].any()


def test_gae_by_hand():
    """Two written tokens around a retrieved one: deltas 0.5 * 2 - 1 = 0 and 3 - 2 = 1, so A = (0 + 0.25 * 1, 1)."""
    advantages, returns = gae(
        torch.tensor([[0.0, 99.0, 3.0]]),
        torch.tensor([[1.0, 99.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 1.0]]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [[0.25, 0.0, 1.0]] and returns.tolist() == [[1.25, 0.0, 3.0]]


def test_whitening_by_hand():
    values = [torch.tensor([1.0, 100.0, 2.0]), torch.tensor([3.0])]
    first, second = whiten(values, [torch.tensor([True, False, True]), torch.tensor([True])])
    torch.testing.assert_close(first, torch.tensor([-1.0, 0.0, 0.0]))
    torch.testing.assert_close(second, torch.tensor([1.0]))


def test_kl_estimators_by_hand():
    ours, theirs = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -2.0, 9.0])
    assert k1(ours, theirs).tolist() == [0.0, 1.0, -10.0]
    torch.testing.assert_close(k3(ours, theirs), torch.tensor([0.0, 0.36787944, 10.0]))  # exp(-1) - 1 + 1; clamped


def test_both_estimators_are_unbiased_for_the_reverse_kl():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator).log_softmax(-1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * k1(p, q)).sum(), exact)
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), exact)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [(1.5, 1.0, -1.2, 1.0), (1.5, -1.0, 1.5, 0.0), (0.5, 1.0, -0.5, 0.0), (0.5, -1.0, 0.8, 1.0), (1.1, 2.0, -2.2, 0.0)],
)
def test_policy_clipping_by_hand(ratio, advantage, loss, clipped):
    new = torch.tensor([ratio]).log().requires_grad_()
    surrogate, active = clipped_policy_loss(new, torch.zeros(1), torch.tensor([advantage]), 0.2)
    assert surrogate.item() == pytest.approx(loss) and active.item() == clipped
    (gradient,) = torch.autograd.grad(surrogate, new)
    assert gradient.item() == pytest.approx(0.0 if clipped else -advantage * ratio)


@pytest.mark.parametrize(
    ("value", "loss", "moves"),
    [(0.4, 0.5 * 0.6**2, True), (0.9, 0.5 * 0.5**2, False), (-0.9, 0.5 * 1.9**2, True)],
)
def test_value_clipping_by_hand(value, loss, moves):
    """Old value 0, target 1, clip 0.5: beyond 0.5 towards the target nothing is gained; away from it all is paid."""
    new = torch.tensor([value]).requires_grad_()
    term = clipped_value_loss(new, torch.zeros(1), torch.ones(1), 0.5)
    assert term.item() == pytest.approx(loss)
    assert (torch.autograd.grad(term, new)[0].item() != 0) == moves


def test_group_advantages_by_hand():
    result = group_advantages(torch.tensor([1.0, 0.0, 3.0, 0.7]), ["a", "b", "a", "c"])
    scale = 2.0**0.5 + 1e-6  # standard deviation of 1 and 3 with Bessel's correction
    torch.testing.assert_close(result, torch.tensor([-1 / scale, 0.0, 1 / scale, 0.7]))
