"""A teacher whose numbers overflow is named, before anything is trained on them."""

import pytest
import torch
from tests.unit.test_train_step import learner, trajectories

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.training.batch import pack
from dgpo_cli.training.credit import rollout_sample, teacher_samples
from dgpo_cli.training.signals import fill
from dgpo_cli.training.step import accumulate
from tiny import bpe_tokenizer, qwen


def overflowing(method, options=None):
    made = learner(method, options)
    made.teacher.config._name_or_path = made.teacher.name_or_path = "teachers/big"
    with torch.no_grad():
        made.teacher.model.layers[1].mlp.down_proj.weight[3, 5] = torch.inf
    return made


def test_a_distribution_that_is_not_finite_is_no_loss():
    made = overflowing("kd")
    with pytest.raises(ModelError, match=r"teacher teachers/big \(in float32\): .*hidden states are not finite"):
        accumulate(made, pack(teacher_samples(trajectories()), made.device), 10.0)
    assert all(p.grad is None for p in made.student.parameters())


def test_log_probabilities_that_are_not_finite_are_no_credit():
    made = overflowing("dgpo")
    given = trajectories()
    with pytest.raises(ModelError, match=r"teacher teachers/big .*log-probabilities are not finite"):
        fill(made, given, [rollout_sample(t) for t in given])


def test_an_8_bit_teacher_is_told_by_what_to_leave_out(monkeypatch):
    made = overflowing("kd")
    monkeypatch.setattr(type(made.teacher), "is_quantized", True, raising=False)
    made.teacher.__dict__.pop("is_quantized", None)
    with pytest.raises(ModelError, match="in 8 bit") as raised:
        accumulate(made, pack(teacher_samples(trajectories()), made.device), 10.0)
    assert raised.value.hint == "leave out --teacher-8bit"


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_probabilities_are_no_numbers_writes_nothing(burst, temperature):
    tokenizer = bpe_tokenizer()
    model = qwen(len(tokenizer))
    model.config._name_or_path = model.name_or_path = "models/broken"
    engine = InProcessEngine(model, Codec(tokenizer, DEFAULT), slots=2, capacity=64, burst=burst)
    sampling = Sampling(temperature, 8, ("</search>",), seed=0, key="a")
    engine.close(engine.open([5, 6, 7], sampling))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:] = torch.nan
    engine.open([5, 6, 7], sampling)
    with pytest.raises(ModelError, match=r"models/broken computes probabilities that are no numbers"):
        while engine.step():
            pass
