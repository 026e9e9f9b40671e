"""Memory of the rollout cache: what open episodes hold, whatever was asked for, and the same episodes."""

import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen
from tests.unit.test_burst import episodes

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.cache import SlotCache
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.in_process.sizes import PASS_TOKENS, cache_bytes, grown, pass_tokens
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def wide(dtype=torch.float32):
    """2.1 GB in float32, were it all there."""
    return SlotCache(4, 64, 4, 4096, 64, device=CPU, dtype=dtype)


def store(cache, row, tokens, value=1.0):
    rows, positions = torch.full((tokens,), row), torch.arange(tokens)
    new = torch.full((tokens, 4, 64), value, dtype=cache.keys[0].dtype)
    for layer in range(4):
        cache.write(layer, cache.places(rows, positions), new, -new)


@LINUX
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_takes_what_its_tokens_take_and_gives_it_back(dtype):
    store(SlotCache(4, 1, 4, 512, 64, device=CPU, dtype=dtype), 0, 512)  # what the operators themselves take
    before = resident()
    cache = wide(dtype)
    lengths = {0: 1000, 9: 300, 63: 700}
    for row, length in lengths.items():
        store(cache, row, length)
    expected = cache_bytes(
        lengths.values(), layers=4, kv_width=256, itemsize=dtype.itemsize, slots=64, capacity=4096, accelerated=False
    )
    assert expected == 2 * 4 * 256 * dtype.itemsize * 2000
    assert abs(resident() - before - expected) < 3 * MIB
    cache.release(0, 500)
    assert abs(resident() - before - 0.75 * expected) < 3 * MIB
    assert float(cache.keys[3][0, 3, 499, 63]) == 1 and float(cache.values[3][0, 3, 499, 63]) == -1
    for row in lengths:
        cache.release(row)
    assert resident() - before < 3 * MIB


@LINUX
def test_what_lies_beside_a_row_that_is_released_stays():
    cache = SlotCache(4, 3, 4, 1000, 24, device=CPU, dtype=torch.float32)  # heads and rows that end inside pages
    rows = torch.arange(3).repeat_interleave(1000)
    new = torch.randn(3000, 4, 24, generator=torch.Generator().manual_seed(0))
    for layer in range(4):
        cache.write(layer, cache.places(rows, torch.arange(1000).repeat(3)), new, new)
    before = [layer.clone() for layer in (*cache.keys, *cache.values)]
    cache.release(1, 333)
    for now, then in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(now[[0, 2]], then[[0, 2]]) and torch.equal(now[1, :, :333], then[1, :, :333])
        assert float(now[1, :, 600:800].abs().max()) == 0
    cache.release(1)
    for now, then in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(now[[0, 2]], then[[0, 2]])


@LINUX
def test_an_engine_of_many_slots_takes_what_few_episodes_hold(codec):
    """12 GiB were asked for: 64 slots of 4,096 tokens at 46 KB a token."""
    model = qwen(len(codec.tokenizer), hidden=64, layers=2)
    model.config.max_position_embeddings = 200_000
    run = lambda slots: InProcessEngine(model, codec, slots=slots, capacity=190_000)  # noqa: E731
    taken = []
    for slots in (2, 64):
        engine = run(slots)
        before = resident()
        opened = [engine.open([5] * 900, Sampling(1.0, 20, (), key=str(i))) for i in range(2)]
        while engine.step():
            pass
        taken.append(resident() - before)
        for slot in opened:
            engine.close(slot)
    assert taken[1] < taken[0] + 4 * MIB


@pytest.mark.parametrize("burst", [1, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cache_that_is_made_anew_writes_the_same_episodes(codec, monkeypatch, temperature, burst):
    """To the bit, as elsewhere than on a CPU: rows and lengths grow while episodes are under way."""
    model = qwen(len(codec.tokenizer))
    expected = episodes(model, codec, burst=burst, temperature=temperature, count=16, slots=12, longest=40)
    monkeypatch.setattr(SlotCache, "_map", lambda self, layers: None)
    monkeypatch.setattr("dgpo_cli.engine.in_process.sizes._LEAST_LENGTH", 8)
    sizes = set()
    make_room = SlotCache.make_room

    def watched(self, rows, tokens):
        make_room(self, rows, tokens)
        sizes.add((self.rows, self.capacity))

    monkeypatch.setattr(SlotCache, "make_room", watched)
    assert episodes(model, codec, burst=burst, temperature=temperature, count=16, slots=12, longest=40) == expected
    assert len(sizes) > 1 and sizes <= {(12, length) for length in (32, 64, 128)}


def test_a_cache_grows_in_few_steps_and_never_beyond_its_limit():
    lengths = {grown(64, tokens, slots=64, capacity=4096)[1] for tokens in range(1, 4097)}
    assert lengths == {512, 1024, 2048, 4096}
    assert grown(3, 2000, slots=512, capacity=2003) == (8, 2008)
    for rows in range(1, 513):
        assert rows <= grown(rows, 1, slots=512, capacity=600)[0] <= max(1.25 * rows, rows + 7)
    known = {"layers": 24, "kv_width": 128, "itemsize": 2, "slots": 64, "capacity": 4096}
    assert cache_bytes([], **known, accelerated=True) == 0
    assert cache_bytes([900, 1100, 10], **known, accelerated=True) == 2 * 24 * 128 * 2 * 8 * 2048


def test_passes_on_a_cpu_are_smaller_the_wider_the_model():
    assert pass_tokens(64, 176, 4, accelerated=False) == PASS_TOKENS
    assert pass_tokens(576, 1536, 4, accelerated=False) == 2647
    assert pass_tokens(576, 1536, 4, accelerated=True) == PASS_TOKENS
    assert pass_tokens(8192, 28672, 4, accelerated=False) == 1024


def test_a_cache_that_has_no_addresses_is_one_line():
    with pytest.raises(ConfigError, match=r"of 2000000 episodes of 4096 tokens has no room here .* GiB") as raised:
        SlotCache(4000, 2_000_000, 64, 4096, 128, device=CPU, dtype=torch.float32)
    assert "rollout.wave" in raised.value.hint
