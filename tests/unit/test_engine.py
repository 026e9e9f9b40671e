"""The engine against plain forward passes of the same model."""

import random

import numpy as np
import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dgpo_cli.engine.base import Sampling, TurnEnd
from dgpo_cli.engine.in_process import sizes
from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.engine import Blend, InProcessEngine
from dgpo_cli.engine.in_process.passes import Pass
from dgpo_cli.engine.sampling import sample, stream_key, uniforms
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.tags import DEFAULT
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
            written[i] += zip(event.token_ids, event.logprobs, strict=True)
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
    result = run(InProcessEngine(model, codec, slots=7, capacity=200), range(7), temperature)
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


def llama(vocabulary, dtype=torch.float32, **changes):
    torch.manual_seed(4)
    config = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
    return LlamaForCausalLM(LlamaConfig(**config | changes)).eval().to(dtype)


def qwen3(vocabulary):
    torch.manual_seed(4)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
            initializer_range=0.2,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("make", [llama, qwen3])
def test_other_models_of_the_family_give_the_tokens_of_plain_greedy_generation(setup, make):
    _, codec = setup
    model = make(codec.vocabulary_size)
    result = run(InProcessEngine(model, codec, slots=7, capacity=200), range(7), 0.0)
    for sequence in result.values():
        ids = torch.tensor([[t for t, _ in sequence]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place, (token, logprob) in enumerate(sequence):
            if logprob is not None:
                assert int(logprobs[place - 1].argmax()) == token
                assert abs(float(logprobs[place - 1, token]) - logprob) < 2e-5


@pytest.mark.parametrize("make", [qwen, llama])
def test_greedy_turns_are_what_generate_writes(setup, make):
    """Token for token in float32, each turn generated from its whole text again."""
    _, codec = setup
    model = make(codec.vocabulary_size)
    result = run(InProcessEngine(model, codec, slots=7, capacity=200), range(7), 0.0)
    for sequence in result.values():
        place = 0
        while place < len(sequence):
            if sequence[place][1] is None:
                place += 1
                continue
            end = next((i for i in range(place, len(sequence)) if sequence[i][1] is None), len(sequence))
            ids = torch.tensor([[t for t, _ in sequence[:place]]])
            new = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=end - place,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert new[0, place:].tolist() == [t for t, _ in sequence[place:end]]
            place = end


@pytest.mark.parametrize("make", [qwen, llama])
def test_bfloat16_stays_near_and_parts_only_at_near_ties(setup, make):
    """Bounds: log-probabilities within 0.12 of a plain bf16 pass, and another token only where both are that near."""
    _, codec = setup
    model = make(codec.vocabulary_size).to(torch.bfloat16)
    result = run(InProcessEngine(model, codec, slots=7, capacity=200), range(7), 0.0)
    differences = []
    for sequence in result.values():
        ids = torch.tensor([[t for t, _ in sequence]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :, : codec.vocabulary_size].float().log_softmax(-1)
        for place, (token, logprob) in enumerate(sequence):
            if logprob is not None:
                differences.append(abs(float(logprobs[place - 1, token]) - logprob))
                assert float(logprobs[place - 1].max() - logprobs[place - 1, token]) < 0.12
    assert 0 < max(differences) < 0.12 and len(differences) > 100


def test_a_beginning_in_common_is_read_once(setup, monkeypatch):
    model, codec = setup
    common = [17 * i % 300 for i in range(60)]
    texts = [[*common, *range(5, 5 + i)] for i in (1, 4, 9)] + [common]
    read = []
    whole = Decoder.last_hidden
    monkeypatch.setattr(Decoder, "last_hidden", lambda self, new: read.append(len(new.ids)) or whole(self, new))

    def first_tokens(engine, chosen):
        slots = [engine.open(texts[i], Sampling(1.0, 4, (), seed=1, key=str(i))) for i in chosen]
        events = engine.step()
        return [next((e.token_ids[0], e.logprobs[0]) for e in events if e.slot == slot) for slot in slots]

    engine = InProcessEngine(model, codec, slots=4, capacity=100)
    together = first_tokens(engine, [0, 1, 2])
    later = first_tokens(engine, [3])  # a slot that is open lends what it has read
    assert sum(read[:-1]) == 60 + 1 + 4 + 9 and read[-1] == 3 + 1
    alone = [first_tokens(InProcessEngine(model, codec, slots=1, capacity=100), [i])[0] for i in range(4)]
    for (token, logprob), (expected, other) in zip([*together, *later], alone, strict=True):
        assert token == expected and abs(logprob - other) < 2e-5


def test_rows_are_moved_together_when_few_are_left(setup):
    """Slots end one by one from the first; those that wait keep what they have read."""
    model, codec = setup
    engine = InProcessEngine(model, codec, slots=8, capacity=200)
    rows = []
    whole = Decoder.last_hidden
    result = {}

    def watched(self, new):
        rows.append(int(new.rows.max()) + 1)
        return whole(self, new)

    Decoder.last_hidden = watched
    try:
        slots = [engine.open(text, Sampling(0.0, 3 * (i + 1), (), key=str(i))) for i, text in enumerate(prompts(8))]
        written = {slot: [] for slot in slots}
        resumed = False
        while events := engine.step():
            for event in events:
                written[event.slot] += event.token_ids
                if event.end is not None and event.slot != slots[0]:
                    engine.close(event.slot)
            if len(written[slots[6]]) == 20 and not resumed:
                resumed = True
                engine.extend(slots[0], [5, 6, 7])
        result = {i: written[slot] for i, slot in enumerate(slots)}
    finally:
        Decoder.last_hidden = whole
    assert rows[0] == 8 and min(rows[-3:]) <= 2
    for i, text in enumerate(prompts(8)):
        one = InProcessEngine(model, codec, slots=1, capacity=200)
        slot = one.open(text, Sampling(0.0, 3 * (i + 1), (), key=str(i)))
        tokens = []
        for _ in range(2 if i == 0 else 1):
            while events := one.step():
                tokens += [i for e in events for i in e.token_ids]
            if i == 0 and len(tokens) == 3:
                one.extend(slot, [5, 6, 7])
        assert result[i] == tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_layer=1)), "another architecture"),
        (
            lambda size: llama(size, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rotary embeddings of type dynamic",
        ),
    ],
)  # fmt: skip
def test_what_the_decoder_cannot_read_is_refused(setup, make, message):
    _, codec = setup
    with pytest.raises(ModelError, match=message):
        InProcessEngine(make(codec.vocabulary_size), codec, slots=1, capacity=100)


def test_what_an_episode_draws_does_not_depend_on_the_batch(setup):
    model, codec = setup
    together = run(InProcessEngine(model, codec, slots=7, capacity=200), range(7), 1.0)
    some = run(InProcessEngine(model, codec, slots=9, capacity=200), [6, 2, 4], 1.0)
    for i, sequence in some.items():
        assert [t for t, _ in sequence] == [t for t, _ in together[i]]


def test_the_engine_reads_the_trainers_weights(setup):
    _, codec = setup
    model = qwen(len(codec.tokenizer), seed=5)
    engine = InProcessEngine(model, codec, slots=2, capacity=100)
    before = run(engine, [0, 1], 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = run(engine, [0, 1], 0.0)
    assert before != after
    fresh = run(InProcessEngine(model, codec, slots=2, capacity=100), [0, 1], 0.0)
    assert [t for t, _ in fresh[0]] == [t for t, _ in after[0]]


def test_a_full_slot_ends_by_length_and_never_writes_past_its_capacity(setup):
    model, codec = setup
    engine = InProcessEngine(model, codec, slots=3, capacity=24)
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
    engine = InProcessEngine(model, codec, slots=1, capacity=16)
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
    tokens, logprobs = sample(logits, uniform, torch.ones(5), greedy=False)
    assert tokens.tolist() == [0, 0, 1, 2, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4]))


def test_sampling_over_many_blocks_is_the_inverse_of_the_cumulative_distribution():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 1000, generator=generator)
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    tokens, _ = sample(logits, uniform, torch.ones(64), greedy=False)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    rows = torch.arange(64)
    below = torch.where(tokens > 0, cumulative[rows, (tokens - 1).clamp(min=0)], 0.0)
    assert bool((below <= uniform + 1e-6).all()) and bool((uniform <= cumulative[rows, tokens] + 1e-6).all())
    assert len(set((tokens // 128).tolist())) == 8


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    tokens, _ = sample(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), torch.ones(3), greedy=False)
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
    result = run(InProcessEngine(model, codec, slots=7, capacity=200, blend=Blend(second, 0.3)), range(7), temperature)
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


@pytest.mark.parametrize("burst", [1, 8])
def test_a_long_text_is_read_in_pieces_and_writes_the_same(setup, monkeypatch, burst):
    """The mask of a pass never grows with the square of a text: prompts, what they share, and observations."""
    model, codec = setup
    chance = random.Random(4)
    common = [chance.randrange(3, 300) for _ in range(90)]
    texts = [[*common, *(chance.randrange(3, 300) for _ in range(size))] for size in (1, 60, 130)]
    pairs = []

    def write():
        pairs.clear()
        engine = InProcessEngine(model, codec, slots=3, capacity=500, burst=burst)
        slots = [engine.open(text, Sampling(1.0, 6, (), seed=3, key=str(len(text)))) for text in texts]
        written, turns = {slot: [] for slot in slots}, dict.fromkeys(slots, 0)
        while events := engine.step():
            for event in events:
                written[event.slot] += zip(event.token_ids, event.logprobs, strict=True)
                turns[event.slot] += event.end is not None
                if event.end is not None and turns[event.slot] == 1:
                    engine.extend(event.slot, texts[2][: 100 + event.slot])
        return list(written.values())

    made = Pass.of.__func__

    def counted(cls, new, rows, starts, *rest):
        pairs.extend(len(ids) * (start + len(ids)) for ids, start in zip(new, starts, strict=True))
        return made(cls, new, rows, starts, *rest)

    monkeypatch.setattr(Pass, "of", classmethod(counted))
    whole = write()
    assert max(pairs) > 20_000
    monkeypatch.setattr(sizes, "_MASK_PAIRS", 4000)
    monkeypatch.setattr(sizes, "_LEAST_PIECE", 8)
    pieces = write()
    assert max(pairs) <= 4000
    for one, other in zip(whole, pieces, strict=True):
        assert len(one) == 12 and [token for token, _ in one] == [token for token, _ in other]
        assert np.allclose([p for _, p in one], [p for _, p in other], atol=2e-5)


def test_texts_of_an_episodes_usual_limits_are_read_at_once():
    assert sizes.piece(4096, 0) == 4096 and sizes.piece(500, 3596) == 500
    assert sizes.piece(30_000, 0) == 559 and sizes.piece(1_000_000, 0) == 64
