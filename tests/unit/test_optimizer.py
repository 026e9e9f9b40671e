"""8-bit AdamW beside the ordinary one, and what a saved state keeps of it."""

import builtins
import copy

import pytest
import torch
from tests.tiny import qwen

from dgpo_cli.errors import ConfigError
from dgpo_cli.training.learner import Optimizer
from dgpo_cli.training.optimizer_settings import OptimizerSettings


def wide_model():
    """Linear maps of 64 x 128 values and more, which are quantized; norms and biases are not."""
    return qwen(100, hidden=64)


def train(model, optimizer, updates, first=0):
    for update in range(first, first + updates):
        generator = torch.Generator().manual_seed(update)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step("policy")


def made(kind, **settings):
    model = wide_model()
    return model, Optimizer(model, OptimizerSettings(1e-3, kind, **settings), 100)


def test_moments_are_in_8_bit_where_they_should_be_and_the_weights_follow():
    (model, eight), (other, plain) = made("adamw-8bit"), made("adamw")
    start = copy.deepcopy(model.state_dict())
    train(model, eight, 5)
    train(other, plain, 5)
    kinds = {name.partition(".")[2]: t.dtype for name, t in eight.tensors().items() if name.startswith("state1.")}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.uint8
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == torch.float32
    for name, weight in model.state_dict().items():
        moved = (weight - start[name]).norm()
        assert (weight - other.state_dict()[name]).norm() < 0.1 * moved, name
        assert moved > 0
    exact = "model.embed_tokens.weight"
    torch.testing.assert_close(model.state_dict()[exact], other.state_dict()[exact], rtol=1e-5, atol=1e-6)
    sizes = [sum(t.numel() * t.element_size() for t in one.tensors().values()) for one in (eight, plain)]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("kind", ["adamw", "adamw-8bit"])
def test_a_saved_state_goes_on_to_the_bit(kind):
    straight, optimizer = made(kind)
    train(straight, optimizer, 6)
    first, before = made(kind)
    train(first, before, 3)
    second, after = made(kind)
    second.load_state_dict(first.state_dict())
    saved = {name: tensor.clone() for name, tensor in before.tensors().items()}
    after.load(saved, before.updates)
    train(second, after, 3, first=3)
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def test_settings_reach_it():
    _, optimizer = made("adamw-8bit", beta2=0.98, weight_decay=0.2)
    assert all(g["betas"] == (0.9, 0.98) and g["weight_decay"] == 0.2 for g in optimizer.adam.param_groups)


def test_a_moment_that_is_missing_is_an_error():
    model, optimizer = made("adamw-8bit")
    train(model, optimizer, 1)
    state = optimizer.tensors()
    del state["absmax1.model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(KeyError):
        optimizer.load(state, 1)


def test_without_bitsandbytes_there_is_one_clear_line(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("bitsandbytes"):
            raise ImportError("No module named 'bitsandbytes'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="adamw-8bit needs bitsandbytes") as caught:
        made("adamw-8bit")
    assert "-o optimizer=adamw" in caught.value.hint


def test_one_kernel_for_all_tensors_updates_as_the_others_do_and_goes_on_from_a_saved_state(monkeypatch):
    (plain, one) = made("adamw")
    monkeypatch.setattr("dgpo_cli.training.learner._adam", lambda parameters: torch.optim.AdamW(parameters, fused=True))
    (fused, two), (again, three) = made("adamw"), made("adamw")
    train(plain, one, 6)
    train(fused, two, 3)
    again.load_state_dict(fused.state_dict())
    three.load({name: tensor.clone() for name, tensor in two.tensors().items()}, two.updates)
    train(fused, two, 3, first=3)
    train(again, three, 3, first=3)
    for name, weight in fused.state_dict().items():
        torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, again.state_dict()[name])
