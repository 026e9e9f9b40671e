"""Every registered objective obeys the contract; special cases tie the objectives to each other."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from dgpo_cli.core.config import describe
from dgpo_cli.core.types import Score
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import Episode, Need, TokenBatch
from dgpo_cli.objectives.dgpo import DGPO
from dgpo_cli.objectives.divergence import kl, log_probs
from dgpo_cli.objectives.kd import KD
from dgpo_cli.objectives.ppo import PPO
from dgpo_cli.objectives.seqkd import SeqKD

N, V = 12, 7
VARIANTS = {
    **{name: registry.create(name, {}) for name in registry.OBJECTIVES},
    "dgpo full-loss": registry.create("dgpo", {"kl_form": "full-loss", "kl_coef": "0.5"}),
    "dgpo always": registry.create("dgpo", {"kl_gate": "always"}),
    "ppo without kl": registry.create("ppo", {"kl_coef": "0"}),
    "kd without ce": registry.create("kd", {"ce_weight": "0"}),
}
RL = {name: objective for name, objective in VARIANTS.items() if Need.REWARD in objective.needs}
EVERY = pytest.mark.parametrize("objective", VARIANTS.values(), ids=VARIANTS)
EVERY_RL = pytest.mark.parametrize("objective", RL.values(), ids=RL)
FIELDS = {
    Need.TEACHER_DISTRIBUTION: ("teacher_logits",),
    Need.TEACHER_LOGPROBS: ("teacher_logprobs",),
    Need.REFERENCE_LOGPROBS: ("reference_logprobs",),
    Need.VALUES: ("values", "old_values", "returns"),
    Need.REWARD: ("behavior_logprobs", "advantages"),
}


def tokens(rows=slice(0, N), seed=0):
    """A micro-batch with every field, and its leaves: the student's logits and the critic's values."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    ids = torch.randint(V, (N,), generator=generator)
    logits, values = rand(N, V).requires_grad_(), rand(N).requires_grad_()
    teacher = rand(N, V)

    def pick(x):
        return x.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)

    whole = {
        "token_ids": ids,
        "logprobs": pick(logits),
        "logits": logits * 1.0,
        "weights": torch.rand(N, generator=generator) + 0.5,
        "sequence_index": torch.arange(N) // 4,
        "by_student": torch.zeros(N, dtype=torch.bool),
        "behavior_logprobs": pick(logits.detach() + 0.3 * rand(N, V)),
        "teacher_logprobs": pick(teacher),
        "teacher_logits": teacher,
        "reference_logprobs": pick(rand(N, V)),
        "advantages": rand(N),
        "returns": rand(N),
        "kl_weight": (torch.arange(N) % 3 == 0).float(),
        "values": values * 1.0,
        "old_values": values.detach() + 0.4 * rand(N),
    }
    assert set(whole) == {f.name for f in fields(TokenBatch)}
    return TokenBatch(**{name: value[rows] for name, value in whole.items()}), (logits, values)


def gradients(objective, cuts):
    """Of the weighted sum over all tokens, where the step is cut into `cuts` pieces."""
    total = [torch.zeros(N, V), torch.zeros(N)]
    for rows in cuts:
        batch, leaves = tokens(rows)
        loss = sum((term * batch.weights).sum() for term in objective.loss(batch).terms.values())
        for whole, part in zip(total, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            if part is not None:
                whole += part
    return total


@EVERY
def test_terms_and_metrics_are_per_token_and_finite(objective):
    batch, _ = tokens()
    result = objective.loss(batch)
    assert "policy" in result.terms and set(result.terms) <= {"policy", "value"}
    for name, value in {**result.terms, **result.metrics}.items():
        assert value.shape == (N,) and torch.isfinite(value).all(), name
    assert all(not value.requires_grad for value in result.metrics.values())
    assert ("value" in result.terms) == (Need.VALUES in objective.needs)


@EVERY
def test_every_term_moves_what_it_trains_and_nothing_else(objective):
    for name, trained in (("policy", 0), ("value", 1)):
        batch, leaves = tokens()
        term = objective.loss(batch).terms.get(name)
        if term is None:
            continue
        found = torch.autograd.grad(term.sum(), leaves, allow_unused=True)
        assert found[trained] is not None and torch.isfinite(found[trained]).all() and found[trained].abs().sum() > 0
        assert found[1 - trained] is None


@EVERY
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(objective):
    whole = gradients(objective, [slice(0, N)])
    pieces = gradients(objective, [slice(0, 1), slice(1, 8), slice(8, N)])
    torch.testing.assert_close(whole, pieces)


@EVERY
def test_undeclared_signals_are_not_read(objective):
    batch, _ = tokens()
    full = objective.loss(tokens()[0]).terms
    for need, names in FIELDS.items():
        if need not in objective.needs:
            for name in names:
                setattr(batch, name, None)
    for name, term in objective.loss(batch).terms.items():
        torch.testing.assert_close(term, full[name], msg=name)


@EVERY
def test_the_state_survives_a_checkpoint(objective):
    for step in range(3):
        objective.after_step({"policy_loss": 1.0 / (step + 1)}, progress=step / 3)
        objective.after_eval({"nll": 1.0 + step})
    second = type(objective)(objective.config)
    second.load_state_dict(objective.state_dict())
    assert second.state_dict() == objective.state_dict()
    assert second.student_fraction == objective.student_fraction


@EVERY
def test_no_token_gets_a_gradient_that_is_not_finite_where_ids_are_excluded(objective):
    """Ids outside the tokenizer are at -inf in both models; 0 * -inf must not reach value or gradient."""
    batch, _ = tokens()
    logits = torch.randn(N, V).requires_grad_()
    outside = torch.zeros(V).index_fill(0, torch.tensor([V - 1]), -torch.inf)
    batch.logits, batch.teacher_logits = logits + outside, batch.teacher_logits + outside
    result = objective.loss(batch)
    assert all(torch.isfinite(term).all() for term in result.terms.values())
    if result.terms["policy"].requires_grad:
        (gradient,) = torch.autograd.grad(result.terms["policy"].sum(), logits, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", registry.OBJECTIVES)
def test_every_setting_has_a_source_and_an_explanation(name):
    notes = describe(type(registry.create(name, {})).Config)
    assert all(note.source and note.help for note in notes), notes


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("pppo", {}, "ppo"),
        ("kd", {"ce_wieght": "1"}, "ce_weight"),
        ("kd", {"ce_weight": "many"}, "float"),
        ("kd", {"ce_weight": "0", "kl_weight": "0"}, "one of them"),
        ("kd", {"kl_weight": "-1"}, "0 or more"),
        ("ppo", {"gamma": "1.5"}, "0 to 1"),
        ("dgpo", {"kl_form": "k9"}, "full-loss"),
        ("dgpo", {"kl_gate": "sometimes"}, "never"),
        ("seqkd", {"ce_weight": "1"}, "no options"),
    ],
)
def test_wrong_settings_are_refused_with_the_way_out(name, options, says):
    with pytest.raises(ConfigError) as caught:
        registry.create(name, options)
    assert says in f"{caught.value.hint}"


# --- credit ---------------------------------------------------------------------------------------------------------


def episode(*, correct, seed=0, length=9):
    """Prompt of two tokens, a turn, an observation of two, a turn, one retrieved token at the very end."""
    generator = torch.Generator().manual_seed(seed)
    written = torch.tensor([False, False, True, True, False, False, *[True] * (length - 7), False])
    rand = lambda: torch.randn(length, generator=generator) * written  # noqa: E731
    return Episode(
        group=str(seed),
        score=Score(float(correct), correct),
        written=written,
        behavior_logprobs=rand(),
        teacher_logprobs=rand(),
        reference_logprobs=rand(),
        values=rand(),
    )


@EVERY_RL
def test_credit_is_per_token_in_order_and_only_where_written(objective):
    episodes = [episode(correct=i % 2 == 0, seed=i, length=9 + i) for i in range(5)]
    together = objective.credit(episodes)
    for one, credit in zip(episodes, together, strict=True):
        (alone,) = objective.credit([one])
        torch.testing.assert_close(credit.advantages, alone.advantages)
        torch.testing.assert_close(credit.returns, alone.returns)
        assert credit.advantages.shape == one.written.shape
        assert not credit.advantages[~one.written].any() and not credit.returns[~one.written].any()
        assert credit.advantages[one.written].all()


@EVERY_RL
def test_credit_reads_no_undeclared_signal(objective):
    episodes = [episode(correct=i % 2 == 0, seed=i) for i in range(4)]
    full = objective.credit(episodes)
    for need, name in ((Need.TEACHER_LOGPROBS, "teacher_logprobs"), (Need.REFERENCE_LOGPROBS, "reference_logprobs")):
        for one in episodes:
            if need not in objective.needs or (name == "teacher_logprobs" and not objective.wants_teacher(one.score)):
                setattr(one, name, None)
    for before, after in zip(full, objective.credit(episodes), strict=True):
        torch.testing.assert_close(before.advantages, after.advantages)


@EVERY_RL
def test_the_reward_sits_on_the_last_written_token(objective):
    """Also where a retrieved token follows it; on that one it would be lost."""
    right = episode(correct=True)
    plain = type(objective)(replace(objective.config, kl_coef=0.0))
    (credit,) = plain.credit([right])
    torch.testing.assert_close(credit.returns[right.written], torch.ones(int(right.written.sum())))


@EVERY_RL
def test_an_episode_without_a_written_token_is_worth_nothing(objective):
    empty = episode(correct=False)
    empty.written = torch.zeros_like(empty.written)
    (credit,) = objective.credit([empty])
    assert not credit.advantages.any() and not credit.returns.any()
    assert objective.credit([]) == []


def test_the_gate_is_on_correctness_and_not_on_the_size_of_the_reward():
    paid = replace_score(episode(correct=False), Score(0.9, correct=False))
    free = replace_score(episode(correct=True), Score(0.05, correct=True))
    k1_reward, full_loss = DGPO(), DGPO(DGPO.Config(kl_form="full-loss"))
    assert k1_reward.reward_penalty(paid)[paid.written].all() and not k1_reward.reward_penalty(free).any()
    assert [full_loss.kl_loss_weight(one) for one in (paid, free)] == [0.001, 0.0]


def replace_score(one, score):
    one.score = score
    return one


@pytest.mark.parametrize(
    ("options", "teacher"),
    [
        ({}, Need.TEACHER_LOGPROBS),
        ({"kl_form": "full-loss"}, Need.TEACHER_DISTRIBUTION),
        ({"kl_gate": "never"}, None),
        ({"kl_coef": "0"}, None),
        ({"kl_form": "full-loss", "kl_coef": "0"}, None),
    ],
)
def test_dgpo_asks_for_the_teacher_only_if_it_uses_it(options, teacher):
    needs = registry.create("dgpo", options).needs
    assert needs == frozenset({Need.REWARD, Need.VALUES} | ({teacher} if teacher else set()))


# --- special cases --------------------------------------------------------------------------------------------------


def same_loss(a, b, seed=0):
    for name, term in a.loss(tokens(seed=seed)[0]).terms.items():
        torch.testing.assert_close(term, b.loss(tokens(seed=seed)[0]).terms[name])


def same_credit(a, b, episodes):
    for first, second in zip(a.credit(episodes), b.credit(episodes), strict=True):
        torch.testing.assert_close(first.advantages, second.advantages)
        torch.testing.assert_close(first.returns, second.returns)


def test_kd_without_kl_is_seqkd():
    same_loss(KD(KD.Config(kl_weight=0.0)), SeqKD())


def test_kd_is_the_sum_of_its_parts_and_the_kl_is_that_of_torch():
    batch, _ = tokens()
    expected = torch.nn.functional.kl_div(
        batch.logits.log_softmax(-1), batch.teacher_logits.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    loss = KD(KD.Config(ce_weight=0.25, kl_weight=2.0)).loss(batch).terms["policy"]
    torch.testing.assert_close(loss, -0.25 * batch.logprobs + 2.0 * expected)


def test_dgpo_on_right_answers_is_ppo_without_kl():
    right = [episode(correct=True, seed=i) for i in range(4)]
    same_credit(DGPO(DGPO.Config(kl_coef=0.7)), PPO(PPO.Config(kl_coef=0.0)), right)
    same_credit(DGPO(DGPO.Config(kl_coef=0.7, kl_form="full-loss")), PPO(PPO.Config(kl_coef=0.0)), right)
    same_loss(DGPO(), PPO())


def test_dgpo_on_wrong_answers_is_ppo_with_the_teacher_as_reference():
    wrong = [episode(correct=False, seed=i) for i in range(4)]
    as_reference = [episode(correct=False, seed=i) for i in range(4)]
    for one in as_reference:
        one.reference_logprobs = one.teacher_logprobs
    dgpo, ppo = DGPO(DGPO.Config(kl_coef=0.7)), PPO(PPO.Config(kl_coef=0.7))
    for first, second in zip(dgpo.credit(wrong), ppo.credit(as_reference), strict=True):
        torch.testing.assert_close(first.advantages, second.advantages)


def test_the_entropy_bonus_is_the_entropy_and_is_rewarded():
    batch, _ = tokens()
    with_bonus, without = (PPO(PPO.Config(entropy_coef=c)).loss(batch).terms["policy"] for c in (0.5, 0.0))
    expected = torch.distributions.Categorical(logits=batch.logits).entropy()
    torch.testing.assert_close(without - with_bonus, 0.5 * expected)


def test_full_loss_adds_the_exact_reverse_kl_where_its_weight_is():
    batch, _ = tokens()
    dgpo, ppo = DGPO(DGPO.Config(kl_form="full-loss")), PPO()
    reverse = kl(log_probs(batch.logits), log_probs(batch.teacher_logits))
    added = dgpo.loss(batch).terms["policy"] - ppo.loss(batch).terms["policy"]
    torch.testing.assert_close(added, batch.kl_weight * reverse)
    batch.teacher_logits = None
    torch.testing.assert_close(dgpo.loss(batch).terms["policy"], ppo.loss(batch).terms["policy"])


def test_the_reward_form_and_the_loss_form_have_one_expected_gradient():
    """Exact expectations over all 4 x 4 episodes of two tokens, for a student whose second token sees the first.

    full-loss: the gradient of the KL at the states visited. k1-reward with gamma 0: what the token itself pays. Both
    leave out that earlier tokens choose which states are visited.
    """
    size, coefficient = 4, 0.3
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1 + size, size, generator=generator).requires_grad_()  # row 0: first token; 1 + a: after a
    teacher = torch.randn(1 + size, size, generator=generator)
    reward_form = DGPO(DGPO.Config(kl_coef=coefficient, gamma=0.0, entropy_coef=0.0))
    loss_form = DGPO(DGPO.Config(kl_coef=coefficient, kl_form="full-loss", entropy_coef=0.0))
    log_s, log_t = log_probs(logits.detach()), log_probs(teacher)
    by_reward, by_loss = torch.zeros_like(logits), torch.zeros_like(logits)
    for a, b in itertools.product(range(size), repeat=2):
        states, ids = torch.tensor([0, 1 + a]), torch.tensor([a, b])
        behavior = log_s[states, ids]
        one = Episode(
            group="",
            score=Score(0.0, correct=False),
            written=torch.tensor([True, True]),
            behavior_logprobs=behavior,
            teacher_logprobs=log_t[states, ids],
            values=torch.zeros(2),
        )
        for objective, total in ((reward_form, by_reward), (loss_form, by_loss)):
            (credit,) = objective.credit([one])
            current = log_probs(logits)
            batch = TokenBatch(
                token_ids=ids,
                logprobs=current[states, ids],
                logits=logits[states],
                weights=torch.ones(2),
                sequence_index=torch.zeros(2, dtype=torch.long),
                behavior_logprobs=behavior,
                advantages=credit.advantages,
                teacher_logits=teacher[states],
                kl_weight=torch.full((2,), credit.kl_weight),
            )
            loss = objective.loss(batch).terms["policy"].sum()
            total += behavior.sum().exp() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(by_reward, by_loss, rtol=1e-4, atol=1e-6)
    assert by_loss.abs().max() > 0.01
