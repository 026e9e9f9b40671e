"""The engine against plain forward passes of the same model."""

import random

import numpy as np
import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.core.protocol import DEFAULT
from dgpo_cli.engine.base import Sampling, TurnEnd
from dgpo_cli.engine.hf import Blend, HFEngine
from dgpo_cli.engine.sampling import sample, stream_key, uniforms
from dgpo_cli.models.codec import Codec


@pytest.fixture(scope="module")
def setup():
    tokenizer = bpe_tokenizer()
    model = qwen(len(tokenizer) + 7)  # padded vocabulary, as in Qwen2.5
    return model, Codec(tokenizer, DEFAULT)


def prompts(count=7, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(rng.randrange(2, 40))] for _ in range(count)]


def run(engine, chosen, temperature, turns=3, max_new_tokens=9):
    """Episodes with forced observations; per prompt index the list of (token, logprob or None)."""
    texts = prompts()
    owner, written, turn = {}, {}, {}
    for i in chosen:
        slot = engine.open(texts[i], Sampling(temperature, max_new_tokens, ("</search>",), seed=3, key=str(i)))
        owner[slot], written[i], turn[i] = i, [(t, None) for t in texts[i]], 0
    while events := engine.step():
        for event in events:
            i = owner[event.slot]
            written[i].append((event.token_id, event.logprob))
            if event.end is None:
                continue
            turn[i] += 1
            if turn[i] == turns:
                engine.close(event.slot)
                continue
            observation = [(7 * i + k) % 300 for k in range(4 + 3 * i)]
            written[i] += [(t, None) for t in observation]
            engine.extend(event.slot, observation)
    return written


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probabilities_and_greedy_tokens_equal_a_plain_forward_pass(setup, temperature):
    model, codec = setup
    result = run(HFEngine(model, codec, slots=7, capacity=200), range(7), temperature)
    for sequence in result.values():
        with torch.no_grad():
            ids = torch.tensor([[t for t, _ in sequence]])
            logits = model(input_ids=ids).logits[0, :, : codec.vocabulary_size] / (temperature or 1.0)
        logprobs = logits.log_softmax(-1)
        for place, (token, logprob) in enumerate(sequence):
            if logprob is None:
                continue
            assert abs(float(logprobs[place - 1, token]) - logprob) < 2e-5
            if temperature == 0:
                assert int(logits[place - 1].argmax()) == token


def test_what_an_episode_draws_does_not_depend_on_the_batch(setup):
    model, codec = setup
    together = run(HFEngine(model, codec, slots=7, capacity=200), range(7), 1.0)
    some = run(HFEngine(model, codec, slots=9, capacity=200), [6, 2, 4], 1.0)
    for i, sequence in some.items():
        assert [t for t, _ in sequence] == [t for t, _ in together[i]]


def test_the_engine_reads_the_trainers_weights(setup):
    _, codec = setup
    model = qwen(len(codec.tokenizer), seed=5)
    engine = HFEngine(model, codec, slots=2, capacity=100)
    before = run(engine, [0, 1], 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = run(engine, [0, 1], 0.0)
    assert before != after
    fresh = run(HFEngine(model, codec, slots=2, capacity=100), [0, 1], 0.0)
    assert [t for t, _ in fresh[0]] == [t for t, _ in after[0]]


def test_a_full_slot_ends_by_length_and_never_writes_past_its_capacity(setup):
    model, codec = setup
    engine = HFEngine(model, codec, slots=3, capacity=24)
    slots = {engine.open([5] * length, Sampling(1.0, 500, (), key=str(length))): length for length in (3, 20, 23)}
    count, ends = dict.fromkeys(slots, 0), {}
    while events := engine.step():
        for event in events:
            count[event.slot] += 1
            if event.end:
                ends[event.slot] = event.end
    for slot, length in slots.items():
        assert length + count[slot] <= 24
        assert ends[slot] is TurnEnd.STOP or (ends[slot] is TurnEnd.LENGTH and length + count[slot] == 24)


def test_misuse_is_refused(setup):
    model, codec = setup
    engine = HFEngine(model, codec, slots=1, capacity=16)
    with pytest.raises(ValueError, match="slot of 16"):
        engine.open([1] * 16, Sampling())
    slot = engine.open([1, 2], Sampling())
    with pytest.raises(ValueError, match="all 1 slots"):
        engine.open([1], Sampling())
    with pytest.raises(ValueError, match="middle of a turn"):
        engine.extend(slot, [1])


def test_inverse_cdf_sampling_reaches_each_token_by_its_probability():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(5, 4)
    uniform = torch.tensor([0.0, 0.0999, 0.1001, 0.5999, 0.9999], dtype=torch.float64)
    tokens, logprobs = sample(logits, uniform, torch.ones(5))
    assert tokens.tolist() == [0, 0, 1, 2, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4]))


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    tokens, _ = sample(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), torch.ones(3))
    assert tokens.tolist() == [1, 3, 3]


def test_uniforms_are_uniform_and_keyed():
    keys = np.array([stream_key(0, f"q{i}", 0) for i in range(400)], dtype=np.uint64)
    grid = np.stack([uniforms(keys, np.full(400, p, dtype=np.uint64)) for p in range(50)])
    assert grid.min() >= 0 and grid.max() < 1
    counts, _ = np.histogram(grid, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom, p < 0.001
    assert len(np.unique(grid)) == grid.size
    assert len({stream_key(0, "a", 1), stream_key(1, "a", 1), stream_key(1, "a", 2), stream_key(1, "b", 2)}) == 4


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_blend_draws_from_the_mixture_of_both_models(setup, temperature):
    model, codec = setup
    second = qwen(len(codec.tokenizer), seed=9, hidden=16, layers=1)
    result = run(HFEngine(model, codec, slots=7, capacity=200, blend=Blend(second, 0.3)), range(7), temperature)
    differences = []
    for sequence in result.values():
        ids = torch.tensor([[t for t, _ in sequence]])
        with torch.no_grad():
            own, other = (
                (m(input_ids=ids).logits[0, :, : codec.vocabulary_size] / temperature).softmax(-1)
                for m in (model, second)
            )
        for place, (token, logprob) in enumerate(sequence):
            if logprob is not None:
                mixed = 0.7 * own[place - 1, token] + 0.3 * other[place - 1, token]
                assert abs(float(mixed.log()) - logprob) < 2e-5
                differences.append(abs(float(own[place - 1, token].log()) - logprob))
    assert max(differences) > 0.1
