"""Memory of the losses and log-probabilities against the number of tokens: distributions exist for a chunk only."""

import json
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import qwen
from torch.profiler import ProfilerActivity, profile

from dgpo_cli.models.lm_head import token_logprobs
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import SIGNALS, TrainedTokens
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.step import vocabulary_pass

V, CHUNK = 2_000, 64
CASES = {
    "seqkd": {},
    "kd": {},
    "gkd": {"beta": 0.5},
    "ppo": {"entropy_coef": 0.01},
    "dgpo": {"kl_form": "full-loss", "kl_coef": 0.1},
}


def extra(run, folder):
    """Bytes of tensors that `run` holds at its highest beyond what there is before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], i, event["args"]["Bytes"]) for i, event in enumerate(events) if event.get("name") == "[memory]"
    )
    return max(accumulate(change for _, _, change in changes))


@pytest.mark.parametrize("method", CASES)
def test_a_loss_takes_as_much_for_8_times_the_tokens(method, tmp_path):
    student, teacher = qwen(V, seed=1), qwen(V, seed=2).requires_grad_(False)
    learner = Learner(
        objective=registry.create(method, CASES[method]),
        codec=SimpleNamespace(vocabulary_size=V),
        student=student,
        policy_optimizer=None,
        teacher=teacher,
        chunk_tokens=CHUNK,
    )

    def run(n):
        tokens = TrainedTokens(
            token_ids=torch.arange(n) % V,
            weights=torch.ones(n),
            kl_weight=torch.ones(n),
            sequence_index=torch.zeros(n, dtype=torch.long),
            by_student=torch.ones(n, dtype=torch.bool),
            values=torch.zeros(n, requires_grad=True),
            **{name: torch.zeros(n) for name in SIGNALS},
        )
        vocabulary_pass(learner, torch.randn(n, 32), torch.randn(n, 32), tokens, float(n))

    run(CHUNK)  # the head's gradient stays
    few, many = extra(lambda: run(256), tmp_path), extra(lambda: run(2048), tmp_path)
    whole = 4 * 2048 * V
    assert many < few + whole / 8, f"{few / 1e6:.0f} MB became {many / 1e6:.0f} MB"
    assert many < whole  # one [N, V]; the JSD alone has some fifteen [n, V] of 64 tokens


def test_log_probabilities_do_too(tmp_path):
    model = qwen(V)

    def run(n):
        ids = torch.arange(n) % V
        token_logprobs(model, torch.randn(n, 32), ids, vocabulary_size=V, chunk_size=CHUNK)

    few, many = extra(lambda: run(256), tmp_path), extra(lambda: run(2048), tmp_path)
    assert many < few + 4 * 2048 * V / 8


def test_the_measure_sees_whole_logits(tmp_path):
    model = qwen(V)
    assert extra(lambda: model.lm_head(torch.randn(2048, 32)).sum(), tmp_path) > 4 * 2048 * V * 0.9
