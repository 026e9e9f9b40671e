"""Linear maps in oneDNN's order of weights: the results of a plain product, but for the order of its sums."""

import copy

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.devices import load_frozen
from dgpo_cli.models.half import compute_in_half, processor_has_bf16
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.models.lora import merged_parameters
from dgpo_cli.models.reordered import Reordered, can_reorder, reorder

CPU, HALF = torch.device("cpu"), torch.bfloat16
pytestmark = pytest.mark.skipif(not can_reorder(CPU, HALF), reason="oneDNN has no bf16 on this processor")


def assert_near(found, expected):
    """A unit of bf16 apart at most; torch 2.13 gives the same bits, 2.11 does not."""
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-8)


def linear(bias, inputs=576, outputs=192):
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias, dtype=HALF)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
def test_products_are_those_of_plain_weights(rows, bias):
    plain = linear(bias)
    ordered = Reordered(plain.bias)
    ordered.take(plain.weight)
    x = torch.randn(2, rows, 576).to(HALF)
    with torch.no_grad():
        assert_near(ordered(x), plain(x))
        assert_near(ordered(x[0, :, :]), plain(x[0]))


def test_its_weights_can_be_had_back_copied_and_saved():
    plain = torch.nn.Sequential(linear(True), torch.nn.LayerNorm(192, dtype=HALF))
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    reorder(plain)
    assert isinstance(plain[0], Reordered) and torch.equal(plain[0].weight, state["0.weight"])
    for module in (plain, copy.deepcopy(plain)):
        found = module.state_dict()
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def model(vocabulary):
    return qwen(vocabulary, hidden=512, layers=2)


def written(loaded, codec):
    """Greedy tokens and log-probabilities of two prompts at once."""
    engine = InProcessEngine(loaded, codec, slots=2, capacity=64)
    slots = [engine.open(ids, Sampling(0.0, 20, ())) for ids in ([5, 6, 7], [9])]
    found = {slot: [] for slot in slots}
    while events := engine.step():
        for event in events:
            found[event.slot] += zip(event.token_ids, event.logprobs, strict=True)
    return [found[slot] for slot in slots]


@pytest.mark.skipif(not processor_has_bf16(), reason="models stay in float32 on this processor")
def test_a_model_that_is_asked_is_reordered_and_writes_what_it_wrote(tmp_path):
    tokenizer = bpe_tokenizer()
    save_model(tmp_path / "model", model(len(tokenizer)), tokenizer, DEFAULT)
    asked = load_frozen(str(tmp_path / "model"), device="cpu").model
    plain = load_model(str(tmp_path / "model"), device=CPU, dtype=HALF).model
    assert any(isinstance(module, Reordered) for module in asked.modules())
    assert not any(isinstance(module, Reordered) for module in plain.modules())
    codec = Codec(tokenizer, DEFAULT)
    for found, expected in zip(written(asked, codec), written(plain, codec), strict=True):
        same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a[0] != b[0]), len(found))
        for (_, one), (_, other) in zip(found[: same + 1], expected[: same + 1], strict=True):
            assert abs(one - other) < 0.05, "another token only where the two are as near"
    ids = torch.arange(40)[None]
    with torch.no_grad():
        found, expected = (of(input_ids=ids).logits.float() for of in (asked, plain))
    assert float((found - expected).norm() / expected.norm()) < 0.02
    save_model(tmp_path / "again", asked, tokenizer, DEFAULT)
    again = load_model(str(tmp_path / "again"), device=CPU, dtype=HALF).model
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_trained_model_is_read_in_order_and_follows_its_masters():
    codec = Codec(bpe_tokenizer(), DEFAULT)
    masters = model(len(codec.tokenizer))
    compute_in_half(masters)
    engine = InProcessEngine(masters, codec, slots=2, capacity=64)
    weights = engine._decoders[0].weights
    for factor in (1.0, 1.5):
        with torch.no_grad():
            for parameter in masters.parameters():
                parameter.mul_(factor)
        weights.refresh()
        source = merged_parameters(masters.get_decoder())
        ordered = [(n, m) for n, m in weights.body.named_modules() if isinstance(m, Reordered)]
        assert len(ordered) == 14
        for name, module in ordered:
            assert torch.equal(module.weight, source[f"{name}.weight"].to(HALF)), name
