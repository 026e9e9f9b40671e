"""The search for the largest batch: against a known limit, on a real step, and what is kept of it."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import qwen
from tests.unit.test_train_step import CODEC, learner, trajectories

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.errors import ConfigError
from dgpo_cli.training.credit import student_samples
from dgpo_cli.training.run import fit as fitting
from dgpo_cli.training.run.fit import Memory, SizeSearch, largest_micro_batch
from dgpo_cli.training.run.fitting import fill, fit
from dgpo_cli.training.step import optimizer_step

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Linear:
    """A device whose peak is 100 bytes and `each` for every unit of size."""

    def __init__(self, kind, limit, each):
        self.device, self.limit, self.each = torch.device(kind), limit, each
        self.now = 100

    def used(self):
        return 100

    def start(self):
        pass

    def run(self, size):
        self.now = 100 + self.each * size
        if self.device.type == "cuda" and self.now > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        assert self.now <= self.limit, f"{size} would have killed the process"

    def peak(self):
        return self.now


@given(st.sampled_from(["cpu", "cuda"]), st.integers(100, 5000), st.integers(1, 60), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_the_search_ends_within_an_eighth_of_the_limit_and_never_beyond_it(kind, limit, each, largest):
    memory = Linear(kind, limit, each)
    best = min(largest, (limit - 100) // each)
    if kind == "cpu" and best > 0:  # the first size is tried blind
        memory.limit = max(limit, 100 + each)
    search = SizeSearch(memory, memory.run, largest)
    if not best:
        with pytest.raises((ConfigError, AssertionError)):
            search.find("a step")
        return
    found = search.find("a step")
    assert found <= best
    assert best - found <= max(1, best // 7) or found == largest


def test_nothing_fits():
    memory = Linear("cuda", 120, 50)
    with pytest.raises(ConfigError, match="a step do not fit into"):
        SizeSearch(memory, memory.run, 8).find("a step")


def weights(made):
    return {name: p.detach().clone() for name, p in made.student.named_parameters()}


@LINUX
@pytest.mark.parametrize("method", ["kd", "ppo", "dgpo"])
def test_real_passes_are_tried_and_leave_nothing_behind(method):
    made = learner(method)
    before = weights(made)
    memory = Memory(CPU)
    tokens, attempts = largest_micro_batch(made, memory, 32, 6)
    assert tokens == 6 * 32 and [a.size for a in attempts] == [1, 2, 4, 6]
    assert all(a.peak >= memory.used() / 2 for a in attempts)
    assert made.micro_batch_tokens == 16_384 and not made.policy_optimizer.tensors()
    for name, parameter in made.student.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    critic = [] if made.critic is None else list(made.critic.parameters())
    assert all(p.grad is None for p in critic)


@LINUX
def test_a_smaller_limit_gives_smaller_batches_and_at_last_an_error():
    """The vocabulary and the layers are tiny here: sequences have to be long for their memory to be seen."""
    made = learner("seqkd")
    plenty = largest_micro_batch(made, Memory(CPU), 500, 64)
    base, top = (a.peak for a in (plenty[1][0], plenty[1][-1]))
    assert plenty[0] == 64 * 500 and top > base
    tight = Memory(CPU)
    tight.start()
    tight.limit = tight.used() + (top - base) // 2
    tokens, attempts = largest_micro_batch(made, tight, 500, 64)
    assert 500 <= tokens < 64 * 500
    assert max(a.peak for a in attempts if a.fits) <= tight.limit
    with pytest.raises(ConfigError, match="do not fit into"):
        largest_micro_batch(made, Memory(CPU, limit=1), 500, 64)


@LINUX
def test_what_was_found_is_kept_and_said_and_a_resumed_run_tries_nothing(tmp_path, monkeypatch):
    made = learner("ppo")
    run = RunDir.open("rl", {"seed": 0}, out=tmp_path / "run")
    said = []
    slots = []

    def engine(count):
        slots.append(count)
        return InProcessEngine(made.student, made.codec, slots=count, capacity=48)

    options = {"length": 48, "sequences": 5, "limit_gib": None, "engine": engine, "say": said.append}
    found = fit(run, made, **options)
    assert (found.micro_batch_tokens, found.wave) == (5 * 48, 5) and slots == [1, 2, 4, 5, 5]
    assert made.micro_batch_tokens == 5 * 48
    assert said[0].startswith("fit: micro-batches of 240 tokens and 5 episodes at once within ")
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["wave"] == 5
    monkeypatch.setattr(fitting, "accumulate", None)
    made.micro_batch_tokens = 1
    assert fit(run, made, **options) == found and made.micro_batch_tokens == 240


@LINUX
def test_a_step_is_the_same_whatever_fitted():
    steps = []
    for budget in (40, 16_384):
        made = learner("ppo", micro_batch_tokens=budget)
        samples, _ = student_samples(made, trajectories())
        optimizer_step(made, samples)
        steps.append(weights(made))
    for name, weight in steps[0].items():
        torch.testing.assert_close(weight, steps[1][name], rtol=1e-3, atol=2e-4)


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="memory in use on mps"):
        Memory(torch.device("mps"))


def test_filling_an_engine_reads_whole_passes(monkeypatch):
    """Prompts that begin alike would be read once and copied, so no pass would be as large as in a rollout."""
    model = qwen(len(CODEC.tokenizer))
    read = []
    whole = Decoder.last_hidden
    monkeypatch.setattr(Decoder, "last_hidden", lambda self, new: read.append(len(new.ids)) or whole(self, new))
    fill(InProcessEngine(model, CODEC, slots=6, capacity=100))
    assert max(read) == 6 * 96
