"""Several tokens between two words with the host: the same episodes, and no need of the host in between."""

import random
from functools import partial

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.types import Hit, Passage, Question
from dgpo_cli.engine.base import Sampling, TurnEnd
from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.draw import NextTokens
from dgpo_cli.engine.in_process.engine import Blend, InProcessEngine
from dgpo_cli.engine.in_process.graphs import Burst
from dgpo_cli.engine.in_process.sizes import bucket
from dgpo_cli.engine.in_process.weights import Weights
from dgpo_cli.formats.base import Turn
from dgpo_cli.formats.tags import DEFAULT, Tags
from dgpo_cli.models.codec import Codec


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


def episodes(model, codec, *, burst, slots=5, count=12, temperature=1.0, capacity=150, longest=17, **options):
    """(tokens, log-probabilities, ends) of `count` episodes of up to three turns, `slots` at a time, by number."""
    chance = random.Random(1)
    begin = [chance.randrange(3, 300) for _ in range(20)]
    waiting = [
        [*begin[: chance.choice([2, 20])], *(chance.randrange(3, 300) for _ in range(chance.randrange(9)))]
        for _ in range(count)
    ]
    limits = [chance.randrange(1, longest + 1) for _ in range(count)]
    engine = InProcessEngine(model, codec, slots=slots, capacity=capacity, burst=burst, **options)
    numbers, made, opened = {}, {i: ([], [], []) for i in range(count)}, 0
    while True:
        while opened < count and engine.free_slots:
            # Two characters that random text is full of: turns end anywhere in a burst.
            sampling = Sampling(temperature, limits[opened], ("e", "</search>"), seed=3, key=str(opened))
            numbers[engine.open(waiting[opened], sampling)] = opened
            opened += 1
        stepped = engine.step()
        if not stepped:
            return made
        assert len({event.slot for event in stepped}) == len(stepped)
        for event in stepped:
            assert 0 < len(event.token_ids) == len(event.logprobs) <= burst
            tokens, logprobs, ends = made[numbers[event.slot]]
            tokens += event.token_ids
            logprobs += event.logprobs
            if event.end is None:
                continue
            ends.append((len(tokens), event.end))
            if len(ends) == 3:
                engine.close(event.slot)
            else:
                engine.extend(event.slot, [(7 * len(tokens) + k) % 300 for k in range(1 + len(tokens) % 9)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("burst", [2, 3, 8])
def test_bursts_write_the_same_episodes(codec, burst, temperature):
    model = qwen(len(codec.tokenizer) + 7)
    one = episodes(model, codec, burst=1, temperature=temperature)
    several = episodes(model, codec, burst=burst, temperature=temperature)
    ends = []
    for number, (tokens, logprobs, of_turns) in one.items():
        assert several[number][0] == tokens and several[number][2] == of_turns
        torch.testing.assert_close(torch.tensor(several[number][1]), torch.tensor(logprobs), atol=2e-5, rtol=0)
        ends += of_turns
    assert {end for _, end in ends} == {TurnEnd.STOP, TurnEnd.LENGTH} and len(ends) == 36


def test_bursts_end_where_a_slot_is_full(codec):
    model = qwen(len(codec.tokenizer))
    for capacity in (24, 37):
        results = []
        for burst in (1, 8):
            engine = InProcessEngine(model, codec, slots=3, capacity=capacity, burst=burst)
            slots = [engine.open([5] * n, Sampling(1.0, 500, (), key=str(n))) for n in (3, 20, 23)]
            written = {slot: [] for slot in slots}
            while events := engine.step():
                for event in events:
                    written[event.slot] += event.token_ids
            results.append(list(written.values()))
        assert results[0] == results[1]
        assert any(len(w) + n == capacity for w, n in zip(results[1], (3, 20, 23), strict=True))


def test_a_blend_writes_bursts(codec):
    model, second = qwen(len(codec.tokenizer)), qwen(len(codec.tokenizer), seed=9, hidden=16, layers=1)
    one = episodes(model, codec, burst=1, blend=Blend(second, 0.3), temperature=0.7)
    assert [e[0] for e in one.values()] == [
        e[0] for e in episodes(model, codec, burst=8, blend=Blend(second, 0.3), temperature=0.7).values()
    ]
    assert one != episodes(model, codec, burst=1, temperature=0.7)


def test_what_waits_for_a_search_keeps_what_it_has_read(codec):
    """Rows between those that write take part in every token of a burst."""
    model = qwen(len(codec.tokenizer))
    results = []
    for beside in (False, True):
        engine = InProcessEngine(model, codec, slots=4, capacity=120, burst=4)
        first = engine.open([9, 8, 7], Sampling(0.0, 3, (), key="a"))
        others = [engine.open([5, i], Sampling(1.0, 40, (), key=str(i))) for i in range(3)] if beside else []
        text, ended = [], False
        while not ended:
            for event in engine.step():
                text += event.token_ids if event.slot == first else []
                ended |= event.slot == first and event.end is not None
        for _ in range(5 * beside):
            engine.step()
        for slot in others[:2]:
            engine.close(slot)
        engine.extend(first, [11, 12, 13])
        while events := engine.step():
            text += [i for event in events if event.slot == first for i in event.token_ids]
        results.append(text)
    assert results[0] == results[1] and len(results[0]) == 6


class Library:
    """Finds a passage of another length for every query."""

    def search(self, queries, k):
        return [[Hit(Passage("p", f'"P"\n{q[:3]}{"word " * (len(q) % 7)}'), 1.0, 1)] for q in queries]


def searching(model, codec, monkeypatch, *, slots, burst, overlap_steps, count):
    """Episodes of a model that knows no tags: each turn that an "e" ends is a search."""
    monkeypatch.setattr(Tags, "stops", ("e",))
    read = lambda _, text, *, ended: Turn(text, "search" if "e" in text else None, text)  # noqa: E731
    monkeypatch.setattr(Tags, "parse", read)
    settings = RolloutSettings(
        max_turns=4, top_k=1, max_new_tokens=40, max_tokens=600, wave=slots, overlap_steps=overlap_steps
    )
    engine = InProcessEngine(model, codec, slots=slots, capacity=600, burst=burst)
    questions = [(Question(str(i), "w" * (1 + i % 11) + "?", ("x",), "test"), 0) for i in range(count)]
    return list(run_episodes(questions, engine=engine, codec=codec, retriever=Library(), settings=settings))


@pytest.mark.parametrize("overlap_steps", [0, 8])
@pytest.mark.parametrize("slots", [8, 9, 24, 25, 64])  # on both sides of sizes that windows are rounded to
def test_episodes_that_wait_for_searches_are_those_of_one_token_at_a_time(codec, monkeypatch, slots, overlap_steps):
    """Windows are rounded up to rows that wait or are free: what those have read stays."""
    model = qwen(len(codec.tokenizer))
    made = [
        searching(
            model, codec, monkeypatch, slots=slots, burst=burst, overlap_steps=overlap_steps, count=slots + slots // 2
        )
        for burst in (1, 8)
    ]
    different = [i for i, (one, other) in enumerate(zip(*made, strict=True)) if one.token_ids != other.token_ids]
    assert not different
    assert sum(len(episode.searches) for episode in made[0]) > 2 * slots


class Devices(TorchDispatchMode):
    """Which devices the tensors of every operator are on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten((args, kwargs, result))[0] if isinstance(t, torch.Tensor)]
        self.seen.append({tensor.device.type for tensor in tensors})
        return result


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("blended", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_of_a_burst_needs_nothing_of_the_host(greedy, blended, dtype):
    """What a capture asks for: on tensors without values no value can be read, and none is brought from the host."""
    models = [qwen(600), qwen(600, seed=9, hidden=16, layers=1)][: 1 + blended]
    decoders = [Decoder(model.to(dtype).to("meta"), 4, 64, torch.bfloat16) for model in models]
    burst = Burst(NextTokens(decoders, 600, 0.3 * blended), 4, 64, 4)
    with torch.no_grad(), Devices() as devices:
        for decoder in decoders:
            decoder.weights.refresh()
            decoder.cache.make_room(4, 64)
        burst._next(4, 32, greedy)
    assert len(devices.seen) > 100 and all(seen == {"meta"} for seen in devices.seen)


def test_sizes_of_windows_are_few_and_at_most_a_quarter_too_large():
    sizes = {bucket(size, 10_000) for size in range(1, 4097)}
    assert len(sizes) < 40
    for size in range(1, 4097):
        found = bucket(size, 10_000)
        assert size <= found and found % 8 == 0 and (found <= 1.25 * size or found - size < 8)
    assert bucket(300, 310) == 310


@pytest.mark.parametrize("plain_order", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_masters_are_rounded_anew_by_every_step(codec, tied, plain_order, monkeypatch):
    """In 16 bit beside float32 masters: log-probabilities of a plain pass in bf16 within 0.12, and never stale ones."""
    if plain_order:  # as on a GPU
        monkeypatch.setattr("dgpo_cli.engine.in_process.weights.can_reorder", lambda *_: False)
    masters = qwen(len(codec.tokenizer), tied=tied)
    weights = Weights(masters, torch.bfloat16)
    with torch.no_grad():
        for parameter in masters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    weights.refresh()
    half = qwen(len(codec.tokenizer), tied=tied).to(torch.bfloat16)
    half.load_state_dict(masters.state_dict())
    found = weights.body.state_dict()
    for name, parameter in half.get_decoder().named_parameters():
        assert torch.equal(parameter, found[name]), name
    assert torch.equal(weights.head, half.get_output_embeddings().weight)
    if plain_order:
        assert len(weights.places()) == 1 + len(list(masters.get_decoder().parameters()))

    monkeypatch.setattr("dgpo_cli.engine.in_process.engine.Decoder", partial(Decoder, dtype=torch.bfloat16))
    engine = InProcessEngine(masters, codec, slots=2, capacity=64, burst=4)
    engine.open([5, 6, 7], Sampling(0.0, 30, ()))
    ids, logprobs = [5, 6, 7], []
    while events := engine.step():
        ids += events[0].token_ids
        logprobs += events[0].logprobs
    with torch.no_grad():
        plain = half(input_ids=torch.tensor([ids])).logits[0, 2:-1, : codec.vocabulary_size].float().log_softmax(-1)
    chosen = plain.gather(1, torch.tensor(ids[3:])[:, None])[:, 0]
    assert 0 < float((chosen - torch.tensor(logprobs)).abs().max()) < 0.12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_write_what_the_function_writes(codec, temperature, monkeypatch):
    model = qwen(len(codec.tokenizer)).to("cuda", torch.bfloat16)
    captured = episodes(model, codec, burst=8, temperature=temperature, count=24, longest=60)
    monkeypatch.setattr("dgpo_cli.engine.in_process.graphs._Graphs", lambda function, device: None)
    assert captured == episodes(model, codec, burst=8, temperature=temperature, count=24, longest=60)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_graphs_follow_the_masters(codec):
    """float32 on a GPU: the engine that has captured writes what a new one writes after an update, and after a move."""
    model = qwen(len(codec.tokenizer)).to("cuda")
    engine = InProcessEngine(model, codec, slots=1, capacity=150)

    def write(engine):
        slot, tokens = engine.open([5, 6, 7], Sampling(0.0, 60, ())), []
        while events := engine.step():
            tokens += events[0].token_ids
        engine.close(slot)
        return tokens

    before = write(engine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    after = write(engine)
    assert after == write(InProcessEngine(model, codec, slots=1, capacity=150)) != before
    model.to(torch.bfloat16)
    moved = InProcessEngine(model, codec, slots=1, capacity=150)
    assert write(moved) == write(moved)


@pytest.mark.parametrize("seed", [2, 5])
def test_an_episode_is_the_one_that_it_is_alone_whatever_goes_on_beside_it(codec, seed):
    """Beginnings in common, turns that wait, places that others left, and episodes that somebody gave up."""
    model, chance = qwen(len(codec.tokenizer), hidden=16), random.Random(seed)
    begin = [chance.randrange(3, 300) for _ in range(40)]
    prompts = [
        [*begin[: chance.choice([1, 20, 40])], *(chance.randrange(3, 300) for _ in range(1 + i % 5))] for i in range(14)
    ]
    results = [[chance.randrange(3, 300) for _ in range(1 + chance.randrange(30))] for _ in prompts]

    def sampling(i):
        return Sampling(float(i % 2), 20, ("e",), seed=5, key=str(i))

    def alone(i):
        engine, text, ended = InProcessEngine(model, codec, slots=1, capacity=120, burst=1), [], 0
        slot = engine.open(prompts[i], sampling(i))
        while events := engine.step():
            text += events[0].token_ids
            ended += events[0].end is not None
            if events[0].end is not None and ended == 1:
                engine.extend(slot, results[i])
        return text

    engine = InProcessEngine(model, codec, slots=9, capacity=120, burst=8)
    texts, turns, slots, waits, given_up = [[] for _ in prompts], [0] * 14, {}, {}, set()
    queue = list(range(14))
    while queue or slots:
        while queue and engine.free_slots and chance.random() < 0.8:
            i = queue.pop(0)
            slots[engine.open(prompts[i], sampling(i))] = i
        for event in engine.step():
            i = slots[event.slot]
            texts[i] += event.token_ids
            turns[i] += event.end is not None
            if event.end is not None and turns[i] == 2:
                engine.close(event.slot)
                del slots[event.slot]
            elif event.end is not None:
                waits[event.slot] = chance.randrange(4)
        for slot in [slot for slot, left in waits.items() if not left]:
            engine.extend(slot, results[slots[slot]])
        waits = {slot: left - 1 for slot, left in waits.items() if left}
        if slots and chance.random() < 0.3:
            slot = chance.choice(list(slots))
            engine.close(slot)
            given_up.add(slots.pop(slot))
            waits.pop(slot, None)
    assert given_up and engine.free_slots == 9
    for i, text in enumerate(texts):
        expected = alone(i)
        assert text == (expected[: len(text)] if i in given_up else expected)
