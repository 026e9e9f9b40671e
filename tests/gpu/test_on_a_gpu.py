"""What runs differently on a GPU, beside the same on the CPU: kernels, steps, searches, memory.

Rollouts, their graphs and packed attention are in test_engine.py.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.gpu.models import CPU, Words, learner, model, samples, sequences, step
from tests.offline import make_without_index, write_one_trajectory

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.packed import Packed
from dgpo_cli.retrieval.dense.device_search import DeviceSearch
from dgpo_cli.retrieval.dense.vectors import ExactSearch
from dgpo_cli.training.run.fit import Memory, largest_micro_batch
from dgpo_cli.training.signals import logprobs

pytestmark = pytest.mark.gpu
HAS_8_BIT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference as a share of the expected norm."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def test_a_packed_sequence_sees_nothing_of_its_neighbours(device: torch.device) -> None:
    one = model().to(device)
    with torch.no_grad():
        together = hidden_states(one, Packed.of(sequences(), device)).split([len(ids) for ids in sequences()])
        for ids, rows in zip(sequences(), together, strict=True):
            assert gap(rows, hidden_states(one, Packed.of([ids], device))) < 2e-3


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        *((method, variant) for method in ("kd", "dgpo", "grpo") for variant in ("plain", "checkpointed")),
        ("dgpo", "shared critic"),
        pytest.param("dgpo", "8-bit adam", marks=HAS_8_BIT),
    ],
)
def test_a_step_is_that_of_the_cpu(device: torch.device, method: str, variant: str) -> None:
    """Losses, KL and gradient norms; a GPU works in bf16, which keeps eight bits."""
    here, there = step(device, method, variant), step(CPU, method, variant)
    assert here.keys() == there.keys() and "policy_grad_norm" in here
    for name, value in there.items():
        assert here[name] == pytest.approx(value, rel=0.05, abs=2e-3), name


def test_log_probabilities_are_those_of_the_cpu(device: torch.device) -> None:
    here, there = (logprobs(made, made.student, samples()) for made in (learner(device, "kd"), learner(CPU, "kd")))
    for found, expected in zip(here, there, strict=True):
        torch.testing.assert_close(found.cpu(), expected.cpu(), atol=0.05, rtol=0)


def test_exact_search(device: torch.device) -> None:
    chance = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        drawn = chance.standard_normal((count, 64)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    vectors, queries = unit(3_000).astype(np.float16), unit(20)
    here, there = DeviceSearch(vectors, device).search(queries, 5), ExactSearch(vectors).search(queries, 5)
    for (rows, _), (same, _) in zip(here, there, strict=True):
        assert rows.tolist() == same.tolist()


@HAS_8_BIT
def test_a_teacher_in_eight_bit_is_close_to_itself(device: torch.device) -> None:
    from transformers import AutoModelForCausalLM

    from dgpo_cli.models.eight_bit import count_eight_bit, quantization

    with tempfile.TemporaryDirectory() as folder:
        model(dtype=torch.bfloat16).save_pretrained(folder)
        small = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=quantization(), device_map={"": device}
        ).eval()
    assert count_eight_bit(small) == 28  # 7 linear maps in each of 4 layers
    with torch.no_grad():
        here = hidden_states(small, Packed.of(sequences(), device))
        there = hidden_states(model(), Packed.of(sequences(), CPU))
    assert torch.isfinite(here).all() and gap(here, there) < 0.1


def test_fit_finds_a_size_that_runs(device: torch.device) -> None:
    """Within 1 GiB; what is taken to fit stayed below it, and what did not was refused."""
    made = learner(device, "dgpo")
    memory = Memory(device, limit=Memory(device).used() + 2**30)
    tokens, attempts = largest_micro_batch(made, memory, 512, 64)
    assert tokens % 512 == 0 and 0 < tokens <= 64 * 512
    assert all(attempt.peak <= memory.limit for attempt in attempts if attempt.fits and attempt.peak is not None)


def allow(gpu: torch.device, more: int) -> None:
    """Let this process use so many bytes of the card beyond what it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + more) / total, gpu)


def allow_all(gpu: torch.device) -> None:
    torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    torch.cuda.empty_cache()


@pytest.fixture
def little_memory(gpu: torch.device) -> Iterator[torch.device]:
    allow(gpu, 2**30)
    yield gpu
    allow_all(gpu)


def test_a_rollout_without_memory_ends_as_such(little_memory: torch.device) -> None:
    engine = InProcessEngine(model().to(little_memory), Words(), slots=4_096, capacity=4_096)  # type: ignore[arg-type]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        for number in range(4_096):
            engine.open(sequences()[2].tolist(), Sampling(1.0, 20, (), key=str(number)))
        while engine.step():
            pass


def test_training_without_memory_ends_in_one_line_and_goes_on_from_its_state(
    device: torch.device, dgpo: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three steps gets no memory: from the card where there is one, from the allocator otherwise."""
    from dgpo_cli.training import loop

    real_step, calls = loop.optimizer_step, []

    def starved(*args: Any, **options: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) != 2:
            return real_step(*args, **options)
        if device.type == "cpu":
            torch.empty(2**55, dtype=torch.uint8)
        allow(device, 0)
        return real_step(*args, **options)

    monkeypatch.setattr(loop, "optimizer_step", starved)
    offline = make_without_index(folder / "offline")
    data = write_one_trajectory(offline, folder / "trajectories.jsonl")
    argv = f"kd --method seqkd --student {offline.student} --data {data} --device {device} --steps 3 --out r".split()
    try:
        ended = dgpo(*argv)
    finally:
        if device.type == "cuda":
            allow_all(device)
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert ended.errors[0].startswith("error: out of memory with "), ended.err
    assert [path.name for path in (folder / "r" / "state").iterdir()] == ["step-00000001"]
    again = dgpo(*argv)
    assert again.status == 0, again.err
    assert len(calls) == 4  # one, the starved one, and the two that were missing
