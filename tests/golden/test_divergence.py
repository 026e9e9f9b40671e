"""Forward KL of DistiLLM, TAID and TRL on masked logits [B, T, V]."""

import pytest
import torch

from dgpo_cli.objectives.base import TokenBatch
from dgpo_cli.objectives.divergence import entropy, kl, log_probs
from dgpo_cli.objectives.kd import KD
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


@CASES
def test_forward_kl_through_the_objective(case):
    student, teacher = flat(case)
    ids = torch.zeros(len(student), dtype=torch.long)
    tokens = TokenBatch(
        token_ids=ids,
        logprobs=log_probs(student)[:, 0],
        logits=student,
        weights=torch.ones(len(student)),
        sequence_index=ids,
        teacher_logits=teacher,
    )
    loss = KD(KD.Config(ce_weight=0.0)).loss(tokens).terms["policy"]
    close(loss.mean() + case["teacher_entropy_masked_mean"], case["forward_kl_cross_entropy_form"], "KD")
