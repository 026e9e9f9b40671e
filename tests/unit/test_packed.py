"""Packed sequences against the same ones alone, for the architectures that the aliases name."""

import copy

import pytest
import torch
from tests.tiny import qwen
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dgpo_cli.models.critic import Critic
from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.packed import Packed
from dgpo_cli.training.learner import enable_gradient_checkpointing

CPU = torch.device("cpu")
LENGTHS = (9, 1, 30, 4, 4, 17)  # two of one length in a row


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def windowed():
    """A Qwen2 whose second layer sees the last 5 tokens only."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.2,
        use_sliding_window=True, sliding_window=5, max_window_layers=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


MODELS = {"qwen2": lambda: qwen(50), "llama": llama, "qwen2 with a sliding window": windowed}
EVERY = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def sequences(seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (length,), generator=generator) for length in lengths]


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@EVERY
def test_packed_is_each_sequence_alone_value_and_gradient(make):
    model = make()
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in sequences()])
    (alone * weights).sum().backward()
    expected = gradients(model)
    together = hidden_states(model, Packed.of(sequences(), CPU))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    (together * weights).sum().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@EVERY
def test_a_padded_batch_under_its_mask_says_the_same(make):
    model, ids = make(), sequences()
    padded, mask = torch.zeros(len(ids), max(LENGTHS), dtype=torch.long), torch.zeros(len(ids), max(LENGTHS))
    for row, one in enumerate(ids):
        padded[row, : len(one)], mask[row, : len(one)] = one, 1
    with torch.no_grad():
        expected = model.model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
        torch.testing.assert_close(hidden_states(model, Packed.of(ids, CPU)), expected, rtol=1e-4, atol=1e-5)


@EVERY
def test_no_sequence_sees_its_neighbour(make):
    """Other tokens before and after it change nothing, to the bit; other tokens of its own do."""
    model = make()
    own, others, third = sequences()[2], sequences(5), sequences(9)[2]
    places = slice(sum(LENGTHS[:2]), sum(LENGTHS[:3]))

    def of(middle, around):
        with torch.no_grad():
            return hidden_states(model, Packed.of([*around[:2], middle, *around[3:]], CPU))[places]

    assert torch.equal(of(own, sequences()), of(own, others))
    assert not torch.equal(of(own, sequences()), of(third, sequences()))


def test_a_checkpointed_second_pass_keeps_sequences_apart():
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))
    found = []
    for checkpointed in (False, True):
        model = llama()
        if checkpointed:
            enable_gradient_checkpointing(model)
            model.train()
        (hidden_states(model, Packed.of(sequences(), CPU)) * weights).sum().backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_critic_reads_packed_sequences_and_its_model_keeps_its_own_attention():
    model = qwen(50)
    critic = Critic(copy.deepcopy(model), seed=0)
    together = critic(Packed.of(sequences(), CPU))
    alone = torch.cat([critic(Packed.of([ids], CPU)) for ids in sequences()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert critic.backbone.config._attn_implementation == model.config._attn_implementation == "sdpa"
