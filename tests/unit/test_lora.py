"""Adapters: zero is the model itself, full rank can be any update, and whatever is read or written is merged."""

import copy

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.in_process.weights import Weights
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic
from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.models.lora import add_adapter, freeze_embeddings, has_adapter, merged_parameters
from dgpo_cli.models.lora_options import LINEAR_MAPS, LoraOptions
from dgpo_cli.models.packed import Packed
from dgpo_cli.objectives import registry
from dgpo_cli.training import checkpoint
from dgpo_cli.training.learner import Learner, Optimizer
from dgpo_cli.training.optimizer_settings import OptimizerSettings

CPU = torch.device("cpu")
IDS = torch.arange(3, 30)


def adapted(rank=4, *, seed=0, moved=0.0, **options):
    """A model with an adapter; `moved` is the size of its second matrices, which begin at zero."""
    model = qwen(420, seed=1)
    add_adapter(model, LoraOptions(rank, **options), seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name and moved:
                parameter.normal_(std=moved, generator=torch.Generator().manual_seed(len(name)))
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS[None]).logits


def loss(model, ids):
    hidden = hidden_states(model, Packed.of([ids], CPU))
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))).mean()


def test_an_adapter_that_is_zero_is_the_model_itself_to_the_bit():
    plain, model = qwen(420, seed=1), adapted()
    assert has_adapter(model) and not has_adapter(plain)
    assert torch.equal(logits(model), logits(plain))
    merged = merged_parameters(model)
    own = dict(plain.named_parameters())
    assert merged.keys() == own.keys() and all(torch.equal(merged[name], own[name]) for name in own)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)


def test_it_is_drawn_from_the_seed_alone():
    torch.manual_seed(5)
    first = adapted(seed=3)
    torch.manual_seed(6)
    again, other = adapted(seed=3), adapted(seed=4)
    same = [all(map(torch.equal, first.parameters(), model.parameters())) for model in (again, other)]
    assert same == [True, False]


def test_what_is_merged_computes_what_the_adapter_computes():
    model = adapted(moved=0.3, alpha=6.0)
    plain = qwen(420, seed=2)
    plain.load_state_dict(merged_parameters(model), strict=False)  # the tied output layer is named once
    assert (logits(model) - logits(qwen(420, seed=1))).abs().max() > 0.01
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", LINEAR_MAPS)
def test_at_full_rank_it_can_be_any_update_of_a_map(target):
    """One step of plain gradient descent on the map, and the same through an adapter whose first matrix spans all.

    With A orthogonal, dL/dB = scale * G A^T, so that a step of B changes the map by scale^2 * G A^T A = scale^2 * G.
    """
    full, lr = qwen(420, seed=1), 0.01
    rank = min(full.get_decoder().layers[0].get_submodule(_place(target)).weight.shape)
    model = qwen(420, seed=1)
    add_adapter(model, LoraOptions(rank, alpha=float(rank), target_modules=(target,)), seed=0)
    for one in (full, model):
        for name, parameter in one.named_parameters():
            if ".lora_A." in name:
                with torch.no_grad():
                    torch.nn.init.orthogonal_(parameter, generator=torch.Generator().manual_seed(1))
            parameter.requires_grad_(".lora_B." in name if one is model else f"{target}.weight" in name)
        loss(one, IDS).backward()
        with torch.no_grad():
            for parameter in one.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
    merged, start = merged_parameters(model), dict(qwen(420, seed=1).named_parameters())
    for name, weight in full.named_parameters():
        if f"{target}.weight" not in name:
            assert torch.equal(merged[name], start[name])
            continue
        first = model.get_submodule(name.removesuffix(".weight")).lora_A["default"].weight  # [rank, in]
        moved = (weight - start[name]) @ first.T @ first  # all of it where the map is not wider than high
        assert moved.abs().max() > 1e-6
        torch.testing.assert_close(merged[name] - start[name], moved, rtol=1e-3, atol=2e-7)
        if rank == weight.shape[1]:
            torch.testing.assert_close(merged[name], weight.detach(), rtol=1e-5, atol=1e-6)


def _place(target):
    return f"self_attn.{target}" if target in LINEAR_MAPS[:4] else f"mlp.{target}"


def test_rollouts_read_the_adapter_as_it_is_now():
    codec, model = Codec(bpe_tokenizer(), DEFAULT), adapted(moved=0.0)
    engine = InProcessEngine(model, codec, slots=1, capacity=64)

    def written(of):
        slot = of.open(IDS[:8].tolist(), Sampling(0.0, 12, (), key="k"))
        tokens = []
        while not (event := of.step()[0]).end:
            tokens += event.token_ids
        of.close(slot)
        return tokens

    before = written(engine)
    assert before == written(InProcessEngine(qwen(420, seed=1), codec, slots=1, capacity=64))
    moved = adapted(moved=1.0)
    model.load_state_dict(moved.state_dict())
    plain = qwen(420, seed=2)
    plain.load_state_dict(merged_parameters(moved), strict=False)
    assert written(engine) == written(InProcessEngine(plain, codec, slots=1, capacity=64)) != before


def test_a_copy_in_half_is_rounded_from_what_is_merged():
    model = adapted(moved=0.3)
    weights = Weights(model, torch.bfloat16)
    weights.refresh()
    expected = merged_parameters(model.get_decoder())
    for name, parameter in weights.body.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, expected[name].bfloat16()), name


def test_a_model_is_written_merged_and_loads_without_an_adapter(tmp_path):
    model = adapted(moved=0.3)
    save_model(tmp_path / "model", model, bpe_tokenizer(), DEFAULT)
    loaded = load_model(str(tmp_path / "model"), device=CPU).model
    assert not has_adapter(loaded)
    own = dict(loaded.named_parameters())
    assert own.keys() == merged_parameters(model).keys()
    assert all(torch.equal(own[name], value) for name, value in merged_parameters(model).items())
    assert has_adapter(model), "writing it does not end it"


def learner(model):
    return Learner(
        objective=registry.create("seqkd", {}),
        codec=Codec(bpe_tokenizer(), DEFAULT),
        student=model,
        policy_optimizer=Optimizer(model, OptimizerSettings(1e-2), 10),
    )


def train(made, updates, first=0):
    for update in range(first, first + updates):
        loss(made.student, IDS + update).backward()
        made.policy_optimizer.step("policy")


def test_a_state_keeps_the_adapter_alone_and_goes_on_to_the_bit(tmp_path):
    straight, before, after = (learner(adapted(seed=seed)) for seed in (0, 0, 7))
    train(straight, 6)
    train(before, 3)
    checkpoint.save(tmp_path, before, 3, {})
    kept = (tmp_path / "step-00000003" / "student.safetensors").stat().st_size
    assert kept < 0.5 * sum(4 * p.numel() for p in before.student.parameters())
    assert checkpoint.load_latest(tmp_path, after)[0] == 3
    train(after, 3, first=3)
    for (name, one), two in zip(straight.student.named_parameters(), after.student.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_embeddings_stay_as_they_are_and_out_of_the_state(tmp_path, tied):
    model = qwen(420, seed=1, tied=tied)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze_embeddings(model)
    made = learner(model)
    train(made, 2)
    same = {name for name, p in model.named_parameters() if torch.equal(p, start[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"} & start.keys()
    assert len(start) - len(same) == len(made.policy_optimizer.names)
    checkpoint.save(tmp_path, made, 2, {})
    other = learner(copy.deepcopy(model))
    assert checkpoint.load_latest(tmp_path, other)[0] == 2


def test_a_critic_of_its_own_trains_an_adapter_of_its_own():
    critic = Critic(copy.deepcopy(adapted()), seed=0)
    names = [name for name, p in critic.named_parameters() if p.requires_grad]
    assert len(names) == 28 + 2 and {name for name in names if ".lora_" not in name} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "lora.rank = 0 is not positive"),
        ({"rank": -4}, "lora.rank = -4 is not positive"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha = 0.0 is not positive"),
        ({"rank": 4, "alpha": float("nan")}, "lora.alpha = nan is not positive"),
        ({"alpha": 8.0}, "no adapter without its rank"),
        ({"target_modules": ("q_proj",)}, "no adapter without its rank"),
        ({"rank": 4, "target_modules": ()}, "names no map"),
    ],
)
def test_options_that_make_no_adapter(options, told):
    with pytest.raises(ConfigError) as caught:
        LoraOptions(**options)
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("options", "told", "hint"),
    [
        (LoraOptions(4, target_modules=("q_prj",)), "the model has no 'q_prj'", "q_proj"),
        (LoraOptions(4, target_modules=("lm_head",)), "the model has no 'lm_head'", "down_proj"),
        (LoraOptions(17, target_modules=("q_proj", "k_proj")), "more than 16, the width of the narrowest map", "16"),
    ],
)
def test_what_a_model_cannot_take_is_told(options, told, hint):
    with pytest.raises(ConfigError) as caught:
        add_adapter(qwen(420), options, seed=0)
    assert told in caught.value.message and hint in caught.value.hint


def test_without_peft_it_is_one_line(monkeypatch):
    monkeypatch.setattr("dgpo_cli.core.extras.is_installed", lambda name: name != "peft")
    with pytest.raises(ConfigError, match="needs peft, which is not installed"):
        add_adapter(qwen(420), LoraOptions(4), seed=0)
