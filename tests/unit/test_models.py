import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from dgpo_cli.errors import ConfigError, ModelError
from dgpo_cli.formats.tags import DEFAULT, TINYWORLD
from dgpo_cli.models import published_prompt
from dgpo_cli.models.aliases import ALIASES, expects_search_r1_prompt
from dgpo_cli.models.critic import Critic
from dgpo_cli.models.eight_bit import count_eight_bit
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.models.packed import Packed
from dgpo_cli.models.random_init import configuration, random_model
from dgpo_cli.models.shapes import SHAPES, Shape
from dgpo_cli.models.sources import load_protocol, resolve
from tiny import bpe_tokenizer, qwen

CPU = torch.device("cpu")


# --- 8 bit ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_eight_bit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight-bit") / "teacher"
    tokenizer = bpe_tokenizer()
    model = qwen(len(tokenizer), hidden=64)
    save_model(folder, model, tokenizer, TINYWORLD)
    return model, load_model(str(folder), device=CPU, eight_bit=True).model


def test_every_linear_layer_but_the_output_is_in_eight_bit(in_eight_bit):
    model, small = in_eight_bit
    assert count_eight_bit(model) == 0
    assert count_eight_bit(small) == 2 * 7  # q k v o, gate up down, in two layers
    assert small.lm_head.weight.dtype == small.model.embed_tokens.weight.dtype == torch.float32


def test_every_weight_is_about_half_a_step_from_the_original_at_most(in_eight_bit):
    """A row is rounded to 127 steps of its largest weight, after float16 has moved it by up to 127 / 2^11 steps."""
    model, small = in_eight_bit
    for name, module in small.named_modules():
        if module.__class__.__name__ == "Linear8bitLt":
            original = model.get_submodule(name).weight
            step = original.abs().amax(dim=1, keepdim=True) / 127
            restored = module.weight.float() * step
            assert ((restored - original).abs() <= (0.5 + 127 / 2**11 + 0.01) * step).all(), name


def test_the_logits_move_a_little_and_only_a_little(in_eight_bit):
    model, small = in_eight_bit
    ids = torch.randint(0, model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, rounded = (m(ids).logits.float().log_softmax(-1) for m in (model, small))
    error = (exact - rounded).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.15, float(error)
    assert (exact.exp() * (exact - rounded)).sum(-1).mean() < 0.02  # KL in nats per token


# --- critic ---------------------------------------------------------------------------------------------------------


def test_a_value_depends_on_what_was_read_so_far_and_on_nothing_later():
    critic = Critic(qwen(50), seed=1)
    ids = torch.randint(0, 50, (2, 8))
    values = critic(Packed.of(list(ids), CPU)).view(2, 8)
    assert values.dtype == torch.float32
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    after = critic(Packed.of(list(changed), CPU)).view(2, 8)
    torch.testing.assert_close(after[:, :5], values[:, :5])
    assert (after[:, 5:] != values[:, 5:]).all()


def test_a_sequence_packed_behind_moves_no_value():
    critic = Critic(qwen(50), seed=1)
    ids, other = torch.randint(0, 50, (6,)), torch.randint(0, 50, (3,))
    torch.testing.assert_close(critic(Packed.of([ids, other], CPU))[:6], critic(Packed.of([ids], CPU)))


def test_the_head_is_drawn_from_the_seed_alone():
    first, again, other = Critic(qwen(50), seed=1), Critic(qwen(50), seed=1), Critic(qwen(50), seed=2)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.head.bias.any()


def test_values_keep_float32_over_a_bf16_body():
    critic = Critic(qwen(50).to(torch.bfloat16), seed=1)
    values = critic(Packed.of([torch.randint(0, 50, (4,))], CPU))
    assert not torch.equal(values, values.bfloat16().float()), "rounded to bf16"


def test_gradients_reach_body_and_head_but_no_separate_output_layer():
    model = qwen(50)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    critic = Critic(model, seed=1)
    critic(Packed.of([torch.randint(0, 50, (4,))], CPU)).sum().backward()
    moved = {name for name, p in critic.named_parameters() if p.grad is not None}
    assert "head.weight" in moved and "backbone.model.embed_tokens.weight" in moved
    assert moved == {name for name, p in critic.named_parameters() if p.requires_grad}


# --- aliases and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_random_models_have_the_size_that_the_alias_names(name):
    """Parameters are counted without memory for them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(name))
    assert model.num_parameters() / 1e9 == pytest.approx(ALIASES[name].parameters, abs=0.005)
    assert model.get_output_embeddings().weight.shape[0] == ALIASES[name].vocabulary


@pytest.mark.parametrize(("name", "count"), [("qwen-0.5b", 494_032_768), ("qwen-3b", 3_085_938_688)])
def test_parameters_to_the_last_one(name, count):
    """The published models' counts: embeddings + layers (attention with q, k, v biases, MLP, two norms) + norm."""
    c = configuration(name)
    kv = c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    attention = 2 * c.hidden_size * (c.hidden_size + kv) + c.hidden_size + 2 * kv
    layer = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
    assert c.vocab_size * c.hidden_size + c.num_hidden_layers * layer + c.hidden_size == count
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(c).num_parameters() == count


def test_random_weights_come_from_the_seed(monkeypatch):
    monkeypatch.setitem(SHAPES, "qwen-tiny", Shape(16, 32, 1, 2, 1, 40, tied=True, qkv_bias=True))
    before = torch.get_rng_state()
    first, again, other = (
        random_model("qwen-tiny", device=CPU, dtype=torch.bfloat16, seed=seed).model.embed_tokens.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and first.dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), before), "the caller's draws are not moved"


def test_an_unknown_size_is_told_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        configuration("qwen-72b")
    assert "qwen-7b" in str(caught.value.hint)


def test_which_checkpoints_expect_the_published_prompt():
    for alias in ALIASES.values():
        assert expects_search_r1_prompt(alias.repo) == (alias.agent_text == "search-r1"), alias.repo
    assert expects_search_r1_prompt("PeterJinGo/SearchR1-nq_hotpotqa_train-qwen2.5-3b-em-ppo-v0.2")
    assert not expects_search_r1_prompt("PeterJinGo/something-else")


def test_the_list_of_models(dgpo):
    ended = dgpo("models", "--json")
    rows = {row["name"]: row for row in json.loads(ended.out)["models"]}
    assert rows.keys() == ALIASES.keys() and rows["qwen-7b"]["gigabytes"] == 15.2
    assert rows["llama-1b"]["gated"] and not rows["qwen-0.5b"]["cached"]
    shown = dgpo("models")
    assert all(name in shown.out and alias.repo in shown.out for name, alias in ALIASES.items())


# --- the published prompt -------------------------------------------------------------------------------------------

TEMPLATE = "Answer the question. Think first. Question: {question}\n"


def checks(template):
    prompts = {question: template.replace("{question}", question) for question in ("who?", "Question: where?")}
    return {q: (len(p), hashlib.sha256(p.encode()).hexdigest()) for q, p in prompts.items()}


@pytest.fixture
def prompt_file(monkeypatch, tmp_path):
    """A made-up prompt in place of the published one, and a cache of its own."""
    monkeypatch.setattr(published_prompt, "CHECKS", checks(TEMPLATE))
    monkeypatch.setattr(published_prompt, "cache_file", lambda: tmp_path / "prompt.txt")
    return tmp_path / "prompt.txt"


def test_the_question_is_cut_out_of_a_prompt(prompt_file):
    assert published_prompt.template_of(TEMPLATE.replace("{question}", "who wrote it?")) == TEMPLATE


@pytest.mark.parametrize(
    "prompt",
    [
        "Answer the question. Think first! Question: who?\n",  # another character
        "Answer the question. Think first.\nwho?\n",  # no mark before the question
        "",
        "{question}",
    ],
)
def test_another_prompt_is_refused(prompt_file, prompt):
    with pytest.raises(ModelError, match="not the one"):
        published_prompt.template_of(prompt)


@pytest.mark.parametrize("template", [TEMPLATE + " ", TEMPLATE.strip(), TEMPLATE * 2, "x" * 60, ""])
def test_a_template_is_the_published_one_to_the_last_character(prompt_file, template):
    assert published_prompt.is_search_r1(TEMPLATE)
    assert not published_prompt.is_search_r1(template)


def test_a_cached_prompt_needs_no_network_and_comes_with_our_correction(prompt_file):
    prompt_file.write_text(TEMPLATE)
    protocol = published_prompt.search_r1_protocol()
    assert (protocol.prompt, protocol.correction) == (TEMPLATE, DEFAULT.correction)
    assert protocol.render_prompt("who")[0] == TEMPLATE.replace("{question}", "who?")


def test_a_damaged_cache_is_not_trusted(prompt_file):
    prompt_file.write_bytes(b"\xff\xfe" + TEMPLATE.encode())
    with pytest.raises(ModelError, match="not cached, and HF_HUB_OFFLINE is set") as caught:
        published_prompt.search_r1_protocol()
    assert "protocol.json" in str(caught.value.hint)


def test_a_fetched_prompt_is_cached(prompt_file, monkeypatch):
    monkeypatch.setattr(published_prompt, "_first_prompt", lambda: TEMPLATE.replace("{question}", "is it?"))
    assert published_prompt.search_r1_protocol().prompt == TEMPLATE
    monkeypatch.setattr(published_prompt, "_first_prompt", lambda: pytest.fail("fetched twice"))
    assert published_prompt.search_r1_protocol().prompt == prompt_file.read_text() == TEMPLATE


def test_published_checkpoints_get_the_published_prompt(prompt_file, monkeypatch):
    prompt_file.write_text(TEMPLATE)
    monkeypatch.setattr("dgpo_cli.models.hub.fetch", lambda repo, file: None)
    assert load_protocol(resolve("qwen-3b"))[0].prompt == TEMPLATE
    assert load_protocol(resolve("qwen-0.5b")) == (DEFAULT, False)
