"""Forward KL of DistiLLM, TAID and TRL on masked logits [B, T, V]."""

import pytest
import torch

from dgpo_cli.objectives.base import TokenBatch
from dgpo_cli.objectives.distillm import DistiLLM
from dgpo_cli.objectives.divergence import entropy, kl, log_probs
from dgpo_cli.objectives.gkd import GKD
from dgpo_cli.objectives.kd import KD
from dgpo_cli.objectives.taid import TAID
from golden.reference import VECTORS, close

CASES = pytest.mark.parametrize("case", VECTORS["distillation"], ids=range(len(VECTORS["distillation"])))


def flat(case):
    mask = torch.tensor(case["mask"]).bool()
    return torch.tensor(case["student_logits"])[mask], torch.tensor(case["teacher_logits"])[mask]


@CASES
def test_divergences(case):
    student, teacher = flat(case)
    log_s, log_t = log_probs(student), log_probs(teacher)
    teacher_entropy = entropy(log_t).mean()
    close(teacher_entropy, case["teacher_entropy_masked_mean"], "teacher entropy")
    close(kl(log_t, log_s).mean() + teacher_entropy, case["forward_kl_cross_entropy_form"], "forward kl")
    close(kl(log_s, log_t).mean(), case["reverse_kl"], "reverse kl")
    close(kl(log_t, log_s).mean(), case["gkd_generalized_jsd_beta0.0_temperature1.0"], "forward kl of TRL")
    close(kl(log_s, log_t).mean(), case["gkd_generalized_jsd_beta1.0_temperature1.0"], "reverse kl of TRL")
    warm = kl(log_probs(teacher, 0.9), log_probs(student, 0.9)).mean()
    close(warm, case["gkd_generalized_jsd_beta0.0_temperature0.9"], "forward kl of TRL at temperature 0.9")


def loss_of(objective, case, temperature=1.0):
    """Mean over the masked tokens, through the objective as it is registered."""
    student, teacher = (logits / temperature for logits in flat(case))
    ids = torch.zeros(len(student), dtype=torch.long)
    tokens = TokenBatch(
        token_ids=ids,
        logprobs=log_probs(student)[:, 0],
        log_probs=log_probs(student),
        weights=torch.ones(len(student)),
        sequence_index=ids,
        teacher_log_probs=log_probs(teacher),
    )
    return objective.loss(tokens).terms["policy"].mean()


@CASES
def test_forward_kl_through_the_objective(case):
    loss = loss_of(KD(KD.Config(ce_weight=0.0)), case)
    close(loss + case["teacher_entropy_masked_mean"], case["forward_kl_cross_entropy_form"], "KD")


@CASES
def test_gkd(case):
    names = [name for name in case if name.startswith("gkd_generalized_jsd_beta")]
    assert len(names) >= 10
    for name in names:
        beta, temperature = name.removeprefix("gkd_generalized_jsd_beta").split("_temperature")
        close(loss_of(GKD(GKD.Config(beta=float(beta))), case, float(temperature)), case[name], name)
    close(loss_of(GKD(GKD.Config(beta=0.1)), case), case["distillm_js_lam0.9"], "GKD as DistiLLM's code has it")


@CASES
def test_distillm(case):
    forward, reverse, variation = (
        loss_of(DistiLLM(DistiLLM.Config(divergence=name)), case)
        for name in ("skew-forward-kl", "skew-reverse-kl", "total-variation")
    )
    teacher_entropy = case["teacher_entropy_masked_mean"]
    close(forward + teacher_entropy, case["skew_forward_kl_lam0.1_cross_entropy_form"], "skew forward kl")
    close(reverse, case["skew_reverse_kl_lam0.1"], "skew reverse kl")
    close(variation, case["total_variation"], "total variation")


@CASES
def test_taid(case):
    student, teacher = flat(case)
    for entry in case["taid_loss_cross_entropy_form"]:
        t = entry["t"]
        target = log_probs((1 - t) * student + t * teacher)
        loss = loss_of(TAID(TAID.Config(t_start=t)), case)
        close(loss + entropy(target).mean(), entry["loss"], f"TAID at {t}")


@pytest.mark.parametrize("name", ["taid_schedule", "taid_schedule_fast"])
def test_taids_schedule(name):
    case = VECTORS[name]
    objective = TAID(TAID.Config(t_start=case["t_start"], t_end=case["t_end"], momentum=case["beta"]))
    for entry in case["trace"]:
        objective.advance(entry["loss"], entry["step"] / case["num_train_steps"], case["alpha"])
        close(torch.tensor(objective.t), entry["t_after"], f"t after step {entry['step']}")
