"""Every registered objective obeys the contract; special cases tie the objectives to each other."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from dgpo_cli.core.config import describe
from dgpo_cli.core.types import Score
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import Need, ScoredEpisode, TokenBatch
from dgpo_cli.objectives.dgpo import DGPO
from dgpo_cli.objectives.distillm import DistiLLM
from dgpo_cli.objectives.divergence import kl, log_probs
from dgpo_cli.objectives.gkd import GKD
from dgpo_cli.objectives.grpo import VARIANTS as VARIANTS_OF_GRPO
from dgpo_cli.objectives.kd import KD
from dgpo_cli.objectives.minillm import MiniLLM
from dgpo_cli.objectives.opd import OPD
from dgpo_cli.objectives.ppo import PPO
from dgpo_cli.objectives.seqkd import SeqKD
from dgpo_cli.objectives.taid import TAID

N, V = 12, 7
LOSS_FORMS = ("k1-token", "k2-loss", "k3-loss")
VARIANTS = {
    **{name: registry.create(name, {}) for name in registry.OBJECTIVES},
    "dgpo full-loss": registry.create("dgpo", {"kl_form": "full-loss", "kl_coef": "0.5"}),
    "dgpo always": registry.create("dgpo", {"kl_gate": "always"}),
    "ppo without kl": registry.create("ppo", {"kl_coef": "0"}),
    "kd without ce": registry.create("kd", {"ce_weight": "0"}),
    "gkd forward": registry.create("gkd", {"beta": "0"}),
    "gkd reverse": registry.create("gkd", {"beta": "1"}),
    "distillm reverse": registry.create("distillm", {"divergence": "skew-reverse-kl"}),
    "distillm tv": registry.create("distillm", {"divergence": "total-variation"}),
    "taid at the teacher": registry.create("taid", {"t_start": "1"}),
    "taid at the middle, the paper's alpha": registry.create("taid", {"alpha": "5e-4", "t_start": "0.5"}),
    "minillm without its exact term": registry.create("minillm", {"single_step_weight": "0"}),
    **{f"grpo {name}": registry.create("grpo", {"variant": name}) for name in VARIANTS_OF_GRPO if name != "grpo"},
    **{f"dgpo {form}": registry.create("dgpo", {"kl_form": form}) for form in LOSS_FORMS},
    **{f"ppo {form}": registry.create("ppo", {"kl_form": form}) for form in (*LOSS_FORMS, "k3-reward")},
}
RL = {name: objective for name, objective in VARIANTS.items() if Need.REWARD in objective.needs}
EVERY = pytest.mark.parametrize("objective", VARIANTS.values(), ids=VARIANTS)
EVERY_RL = pytest.mark.parametrize("objective", RL.values(), ids=RL)
WITH_CRITIC = {name: objective for name, objective in RL.items() if Need.VALUES in objective.needs}
EVERY_CRITIC = pytest.mark.parametrize("objective", WITH_CRITIC.values(), ids=WITH_CRITIC)
FIELDS = {
    Need.TEACHER_DISTRIBUTION: ("teacher_log_probs",),
    Need.TEACHER_LOGPROBS: ("teacher_logprobs",),
    Need.REFERENCE_LOGPROBS: ("reference_logprobs",),
    Need.VALUES: ("values", "old_values", "returns"),
    Need.REWARD: (),
    Need.SEQUENCE_LOG_RATIO: ("sequence_log_ratio",),
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
        "log_probs": logits.log_softmax(-1),
        "weights": torch.rand(N, generator=generator) + 0.5,
        "sequence_index": torch.arange(N) // 4,
        "by_student": torch.zeros(N, dtype=torch.bool),
        "behavior_logprobs": pick(logits.detach() + 0.3 * rand(N, V)),
        "sampling_logprobs": pick(logits.detach() + 0.2 * rand(N, V)),
        "sequence_log_ratio": 0.1 * rand(3)[torch.arange(N) // 4],
        "teacher_logprobs": pick(teacher),
        "teacher_log_probs": teacher.log_softmax(-1),
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
    if not objective.credits:
        batch.behavior_logprobs = batch.sampling_logprobs = batch.advantages = None
    for need, names in FIELDS.items():
        if need not in objective.needs:
            for name in names:
                setattr(batch, name, None)
    for name, term in objective.loss(batch).terms.items():
        torch.testing.assert_close(term, full[name], msg=name)


@EVERY
def test_the_state_survives_a_checkpoint(objective):
    for step in range(3):
        objective.after_step({"policy_loss": 1.0 / (step + 1), "kl_to_target": 1.0 / (step + 1)}, (step + 1) / 3)
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
    batch.log_probs = (logits + outside).log_softmax(-1)
    batch.teacher_log_probs = (batch.teacher_log_probs + outside).log_softmax(-1)
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
        ("gkd", {"beta": "1.5"}, "0 to 1"),
        ("distillm", {"capacity": "0"}, "above 0"),
        ("distillm", {"divergence": "kl"}, "skew-forward-kl"),
        ("taid", {"t_start": "0.9", "t_end": "0.5"}, "t_start <= t_end"),
        ("taid", {"alpha": "fast"}, "auto"),
        ("minillm", {"teacher_share": "1"}, "below 1"),
        ("opd", {"coef": "0"}, "above 0"),
        ("grpo", {"variant": "gpro"}, "dr_grpo"),
        ("grpo", {"overlong_from": "3000"}, "smaller one"),
        ("ppo", {"kl_form": "full-loss"}, "k3-loss"),
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
    return ScoredEpisode(
        group=str(seed),
        score=Score(float(correct), correct),
        written=written,
        behavior_logprobs=rand(),
        teacher_logprobs=rand(),
        reference_logprobs=rand(),
        values=rand(),
    )


@EVERY_CRITIC
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
            if need not in objective.needs or (name == "teacher_logprobs" and not objective.kl_applies(one.score)):
                setattr(one, name, None)
    for before, after in zip(full, objective.credit(episodes), strict=True):
        torch.testing.assert_close(before.advantages, after.advantages)
        assert before.kl_weight == after.kl_weight and before.weight == after.weight


@EVERY_CRITIC
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
    assert not credit.advantages.any() and (credit.returns is None or not credit.returns.any())
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
        batch.log_probs, batch.teacher_log_probs, reduction="none", log_target=True
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
    expected = torch.distributions.Categorical(logits=batch.log_probs).entropy()
    torch.testing.assert_close(without - with_bonus, 0.5 * expected)


def test_full_loss_adds_the_exact_reverse_kl_where_its_weight_is():
    batch, _ = tokens()
    dgpo, ppo = DGPO(DGPO.Config(kl_form="full-loss")), PPO()
    reverse = kl(batch.log_probs, batch.teacher_log_probs)
    added = dgpo.loss(batch).terms["policy"] - ppo.loss(batch).terms["policy"]
    torch.testing.assert_close(added, batch.kl_weight * reverse)
    batch.teacher_log_probs = None
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
        one = ScoredEpisode(
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
                log_probs=current[states],
                weights=torch.ones(2),
                sequence_index=torch.zeros(2, dtype=torch.long),
                behavior_logprobs=behavior,
                advantages=credit.advantages,
                teacher_log_probs=log_t[states],
                kl_weight=torch.full((2,), credit.kl_weight),
            )
            loss = objective.loss(batch).terms["policy"].sum()
            total += behavior.sum().exp() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(by_reward, by_loss, rtol=1e-4, atol=1e-6)
    assert by_loss.abs().max() > 0.01


def test_the_divergences_of_gkd_and_distillm_and_taids_target_have_kd_as_their_end():
    plain = KD(KD.Config(ce_weight=0.0))
    for objective in (GKD(GKD.Config(beta=0.0)), DistiLLM(DistiLLM.Config(alpha=0.0)), TAID(TAID.Config(t_start=1.0))):
        same_loss(objective, plain)


def test_the_other_ends():
    """GKD at 1 and DistiLLM reversed without skew are the reverse KL; TAID at 0 has nothing to learn."""
    batch, _ = tokens()
    reverse = kl(batch.log_probs, batch.teacher_log_probs)
    gkd, distillm = GKD(GKD.Config(beta=1.0)), DistiLLM(DistiLLM.Config(divergence="skew-reverse-kl", alpha=0.0))
    for objective in (gkd, distillm):
        torch.testing.assert_close(objective.loss(batch).terms["policy"], reverse)
    torch.testing.assert_close(TAID(TAID.Config(t_start=0.0)).loss(batch).terms["policy"], torch.zeros(N))


def test_gkds_jsd_is_symmetric_when_teacher_student_and_beta_change_places():
    batch, _ = tokens()
    forward = GKD(GKD.Config(beta=0.3)).loss(batch).terms["policy"]
    batch.log_probs, batch.teacher_log_probs = batch.teacher_log_probs, batch.log_probs
    torch.testing.assert_close(GKD(GKD.Config(beta=0.7)).loss(batch).terms["policy"], forward)


def test_gkd_says_who_writes():
    lazy, eager = GKD(GKD.Config(student_share=0.0)), GKD(GKD.Config(student_share=0.75, seq_kd=True))
    assert (lazy.on_policy, lazy.student_fraction, lazy.teacher_writes) == (False, 0.0, False)
    assert (eager.on_policy, eager.student_fraction, eager.teacher_writes) == (True, 0.75, True)


def test_distillm_lets_the_student_write_more_each_time_the_validation_loss_has_risen():
    objective = DistiLLM(DistiLLM.Config(increment=0.3, tolerance=0.05))
    shares = []
    for nll in (1.0, 0.9, 1.04, 1.06, 1.10, 1.12, 1.5, 1.6, 1.7):
        objective.after_eval({"nll": nll})
        shares.append(round(objective.student_fraction, 6))
    # Compared with the loss at the last rise (1.0, then 1.06, 1.12, 1.5, ...), never with the lowest.
    assert shares == [0.0, 0.0, 0.0, 0.3, 0.3, 0.6, 0.9, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "expected"), [("decreasing", 0.75), ("constant", 0.5), ("increasing", 0.25)])
def test_distillms_fresh_share_moves_with_the_run(schedule, expected):
    objective = DistiLLM(DistiLLM.Config(schedule=schedule))
    objective.after_step({}, 0.25)
    assert objective.fresh_fraction == expected


def test_taid_with_the_papers_alpha_is_the_line_in_a_short_run_and_auto_is_not():
    paper, auto = TAID(TAID.Config(alpha=5e-4)), TAID()
    for step in range(100):
        for objective in (paper, auto):
            objective.after_step({"kl_to_target": 1.0}, (step + 1) / 100)
        assert paper.t == pytest.approx(0.4 + 0.6 * (step + 1) / 100 if step else 0.4)
        if step == 1:  # no change of the loss: twice the line's slope
            assert auto.t - 0.4 == pytest.approx(2 * 0.6 / 100)
        if step == 50:
            assert auto.t > paper.t + 0.05
    assert auto.t == paper.t == 1.0


def test_opd_is_the_gradient_of_the_reverse_kl_at_the_visited_states():
    """Exact expectation over the tokens of one state."""
    size = 5
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(size, generator=generator).requires_grad_()
    log_t = torch.randn(size, generator=generator).log_softmax(0)
    log_s = logits.detach().log_softmax(0)
    total = torch.zeros(size)
    opd = OPD(OPD.Config(coef=0.7))
    for token in range(size):
        one = ScoredEpisode("", Score(0.0, correct=False), torch.tensor([True]), log_s[[token]], log_t[[token]])
        (credit,) = opd.credit([one])
        batch = TokenBatch(
            token_ids=torch.tensor([token]),
            logprobs=logits.log_softmax(0)[[token]],
            log_probs=logits[None].log_softmax(-1),
            weights=torch.ones(1),
            sequence_index=torch.zeros(1, dtype=torch.long),
            behavior_logprobs=log_s[[token]],
            teacher_logprobs=log_t[[token]],
            advantages=credit.advantages,
        )
        total += log_s[token].exp() * torch.autograd.grad(opd.loss(batch).terms["policy"].sum(), logits)[0]
    exact = torch.autograd.grad(0.7 * kl(log_probs(logits[None]), log_t[None]).sum(), logits)[0]
    torch.testing.assert_close(total, exact, rtol=1e-4, atol=1e-6)
    assert not opd.whitens_advantages


@pytest.mark.parametrize(
    ("form", "direction"), [("k1-token", "reverse"), ("k2-loss", "reverse"), ("k3-loss", "forward")]
)
def test_the_estimates_as_losses_have_the_gradient_that_the_page_says(form, direction):
    """Exact expectation over the tokens of one state, with the policy that wrote them unmoved."""
    size, coefficient = 5, 0.3
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(size, generator=generator).requires_grad_()
    teacher = torch.randn(size, generator=generator)
    log_s, log_t = logits.detach().log_softmax(0), teacher.log_softmax(0)
    objective = DGPO(DGPO.Config(kl_form=form, kl_coef=coefficient, entropy_coef=0.0))
    total = torch.zeros(size)
    for token in range(size):
        batch = TokenBatch(
            token_ids=torch.tensor([token]),
            logprobs=logits.log_softmax(0)[[token]],
            log_probs=logits[None].log_softmax(-1),
            weights=torch.ones(1),
            sequence_index=torch.zeros(1, dtype=torch.long),
            behavior_logprobs=log_s[[token]],
            teacher_logprobs=log_t[[token]],
            advantages=torch.zeros(1),
            kl_weight=torch.full((1,), coefficient),
        )
        total += log_s[token].exp() * torch.autograd.grad(objective.loss(batch).terms["policy"].sum(), logits)[0]
    p, q = log_probs(logits[None]), log_probs(teacher[None])
    exact = kl(p, q) if direction == "reverse" else kl(q, p)
    torch.testing.assert_close(total, torch.autograd.grad(coefficient * exact.sum(), logits)[0], rtol=1e-4, atol=1e-6)


def test_a_kl_as_a_loss_acts_only_where_its_weight_is_and_not_where_the_teacher_read_nothing():
    """A micro-batch holds sequences that the teacher reads, or sequences that it does not."""
    batch, (logits, _) = tokens()
    unread = replace(batch, kl_weight=torch.zeros(N), teacher_logprobs=None)
    for form in LOSS_FORMS:
        with_kl, without = DGPO(DGPO.Config(kl_form=form)), DGPO(DGPO.Config(kl_gate="never"))
        added = with_kl.loss(batch).terms["policy"] - without.loss(batch).terms["policy"]
        assert ((added != 0) == (batch.kl_weight > 0)).all()
        (gradient,) = torch.autograd.grad(with_kl.loss(batch).terms["policy"].sum(), logits, retain_graph=True)
        assert torch.isfinite(gradient).all()
        result = with_kl.loss(unread)
        assert torch.equal(result.terms["policy"], without.loss(unread).terms["policy"])
        gated = {name: float(value.abs().sum()) for name, value in result.metrics.items() if "gated" in name}
        assert len(gated) == 2 and set(gated.values()) == {0.0}


def test_minillms_returns_by_hand():
    one = episode(correct=False)
    config = MiniLLM.Config(gamma=0.5, reward_scale=0.5, reward_clip=3.0)
    one.behavior_logprobs = torch.tensor([0.0, 0.0, -1.0, -2.0, 9.0, 9.0, -3.0, -1.0, 0.0])
    one.teacher_logprobs = torch.tensor([0.0, 0.0, -0.5, -2.5, 7.0, 7.0, -1.0, -1.0, 0.0])
    # rewards of the four written tokens: 1, -1, 4 clipped to 3, 0; what lies between the turns does not count
    expected = [(1 + 0.5 * (-1 + 0.5 * 3)) / 4, (-1 + 0.5 * 3) / 3, 3 / 2, 0.0]
    torch.testing.assert_close(MiniLLM(config).returns(one), torch.tensor(expected))
    plain = MiniLLM(replace(config, length_normalized=False)).returns(one)
    torch.testing.assert_close(plain, torch.tensor(expected) * torch.tensor([4.0, 3.0, 2.0, 1.0]))


def test_minillms_ratio_is_taken_to_the_mixture_that_drew_the_token():
    batch, _ = tokens()
    batch.behavior_logprobs = None
    policy = MiniLLM(MiniLLM.Config(single_step_weight=0.0, clip=0.99)).loss(batch).terms["policy"]
    ratio = (batch.logprobs - batch.sampling_logprobs).exp()
    torch.testing.assert_close(policy[ratio < 1.9], (-batch.advantages * ratio)[ratio < 1.9])


def group(*totals, name="q"):
    made = [
        replace_score(episode(correct=total > 0.5, seed=i), Score(total, total > 0.5)) for i, total in enumerate(totals)
    ]
    for one in made:
        one.group = name
    return made


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("grpo", [1.0, -1.0, 0.0]),  # standard deviation of 1, 0, 0.5 with Bessel's correction: 0.5
        ("dr_grpo", [0.5, -0.5, 0.0]),
        ("rloo", [0.75, -0.75, 0.0]),  # 1 - (0 + 0.5) / 2
    ],
)
def test_what_an_attempt_is_worth_beside_its_group(variant, expected):
    objective = registry.create("grpo", {"variant": variant, "kl_coef": "0"})
    episodes = group(1.0, 0.0, 0.5) + group(1.0, 1.0, name="other")
    credited = objective.credit(episodes)
    found = [credit.advantages[one.written].unique().tolist() for one, credit in zip(episodes, credited, strict=True)]
    assert found == [[pytest.approx(x, abs=1e-4)] for x in [*expected, 0.0, 0.0]]
    assert not objective.whitens_advantages


def test_the_reductions_of_grpo():
    """Token weights and the step's divisor: means of sequence means, of tokens, or a constant length per sequence."""
    short, long = episode(correct=True, length=9), episode(correct=False, length=14)
    counts = [int(one.written.sum()) for one in (short, long)]
    assert counts == [4, 9]
    for variant, weights, divisor in (("grpo", [1 / 4, 1 / 9], 2.0), ("dapo", [1, 1], 13.0), ("dr_grpo", [1, 1], 4000)):
        objective = registry.create("grpo", {"variant": variant})
        assert [credit.weight for credit in objective.credit([short, long])] == weights
        total = sum(weight * count for weight, count in zip(weights, counts, strict=True))
        assert objective.denominator(total, 2) == pytest.approx(divisor)


def test_gspo_gives_every_token_the_ratio_of_its_sequence_and_the_gradient_of_its_own_logprob():
    batch, (logits, _) = tokens()
    objective = registry.create("grpo", {"variant": "gspo", "clip": "0.9", "clip_high": "9", "entropy_coef": "0"})
    policy = objective.loss(batch).terms["policy"]
    ratio = batch.sequence_log_ratio.exp()
    torch.testing.assert_close(policy, -batch.advantages * ratio)
    (found,) = torch.autograd.grad(policy.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((-batch.advantages * ratio * batch.logprobs).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_dapos_clips():
    dapo = registry.create("grpo", {"variant": "dapo"})
    batch, _ = tokens()
    batch.advantages = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)
    batch.behavior_logprobs = batch.logprobs.detach() - torch.linspace(-4, 4, N)
    ratio = torch.linspace(-4, 4, N).exp()
    expected = torch.where(batch.advantages > 0, -ratio.clamp(max=1.28), ratio.clamp(0.8, 10.0))
    torch.testing.assert_close(dapo.loss(batch).terms["policy"], expected)


def test_the_penalty_on_overlong_answers_rises_between_its_ends():
    objective = registry.create("grpo", {"overlong_from": "4", "overlong_to": "8"})
    assert [objective.overlong_penalty(n) for n in (3, 4, 6, 8, 20)] == [0, 0, 0.5, 1, 1]


def test_a_variant_goes_under_what_is_set_by_itself():
    config = registry.create("grpo", {"variant": "dapo", "clip_high": "0.5"}).config
    assert (config.clip_high, config.dual_clip, config.kl_coef) == (0.5, 10.0, 0.0)
