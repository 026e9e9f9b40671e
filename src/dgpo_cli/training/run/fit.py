"""The largest batch that fits into memory, found by trying before anything is trained.

Sizes are doubled, then bisected to within an eighth. On the CPU a size is tried only where a line through the peaks of
the two largest tried so far stays below the limit, since what exceeds the memory there does not fail but gets the
process killed. Peaks are the device's own: allocated bytes on CUDA, highest resident memory (Linux) on the CPU.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from dgpo_cli.core.host_memory import give_back
from dgpo_cli.core.machine import GIB, MARGIN, free_on
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.processes import ALONE
from dgpo_cli.objectives.base import SIGNALS, Signals
from dgpo_cli.training.batch import Sample, pack
from dgpo_cli.training.learner import Learner, training_mode
from dgpo_cli.training.signals import logprobs
from dgpo_cli.training.step import accumulate, drop_gradients

_STATUS = Path("/proc/self/status")


class Attempt(NamedTuple):
    """One size that was tried."""

    size: int
    peak: int | None  # bytes; None where it was refused or failed
    fits: bool


@dataclass(slots=True)
class Memory:
    """The memory of a device that a process may use. `limit` in bytes; free memory without a margin by default."""

    device: torch.device
    limit: int = 0
    sharers: int = 1  # processes that do the same at once: on the CPU each gets its share of the free memory

    def __post_init__(self) -> None:
        if self.device.type not in ("cuda", "cpu") or (self.device.type == "cpu" and sys.platform != "linux"):
            raise ConfigError(
                f"the memory in use on {self.device.type} ({sys.platform}) is not known",
                hint="leave out --fit and give -o micro_batch_tokens",
            )
        if not self.limit:
            free = free_on(str(self.device))[1] // (self.sharers if self.device.type == "cpu" else 1)
            self.limit = self.used() + int((1 - MARGIN) * free)

    def used(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _resident("VmRSS")

    def start(self) -> None:
        """Give back what is unused, and count the peak from here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            give_back()
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")


def _resident(name: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name))


@dataclass(slots=True)
class SizeSearch:
    """The largest size from 1 to `largest` whose `run` stays within memory; `attempts` records the search."""

    memory: Memory
    run: Callable[[int], None]
    largest: int
    attempts: list[Attempt] = field(default_factory=list)

    def find(self, what: str) -> int:
        """Raises ConfigError where not even one fits."""
        good, bad, size = 0, self.largest + 1, 1
        while size > good:
            if self._try(size):
                good = size
            else:
                bad = size
            unbounded = bad > self.largest
            size = min(2 * good, self.largest) if unbounded else (good + bad) // 2
            if not unbounded and bad - good <= max(1, good // 8):
                break
        if not good:
            raise ConfigError(
                f"{what} do not fit into {self.memory.limit / GIB:.2f} GiB",
                hint="see `dgpo plan` for what takes the memory: --teacher-8bit, -o gradient_checkpointing=true, "
                "-o optimizer=adamw-8bit",
            )
        return good

    def _try(self, size: int) -> bool:
        if self.memory.device.type == "cpu" and self._expected(size) > self.memory.limit:
            self.attempts.append(Attempt(size, None, False))
            return False
        self.memory.start()
        try:
            self.run(size)
        except torch.cuda.OutOfMemoryError:
            self.attempts.append(Attempt(size, None, False))
            return False
        peak = self.memory.peak()
        self.attempts.append(Attempt(size, peak, peak <= self.memory.limit))
        return peak <= self.memory.limit

    def _expected(self, size: int) -> float:
        known = sorted((a.size, a.peak) for a in self.attempts if a.peak is not None)[-2:]
        if not known:
            return self.memory.used()
        (first, low), (last, high) = (known[0], known[-1]) if len(known) > 1 else ((0, self.memory.used()), known[0])
        return high + (high - low) / max(1, last - first) * (size - last)


def largest_micro_batch(learner: Learner, memory: Memory, length: int, sequences: int) -> tuple[int, list[Attempt]]:
    """Tokens of the largest micro-batch of up to `sequences` sequences of `length` tokens, every one trained on.

    Tries forward and backward passes with the optimizers' moments in place. No optimizer steps, gradients are dropped:
    no weight moves. Raises ConfigError where not even one sequence fits.
    """
    missing = sum(o.state_bytes() for _, o in learner.optimizers() if not o.updates)
    moments = torch.ones(missing, dtype=torch.uint8, device=learner.device)

    def run(count: int) -> None:
        try:
            samples = [_longest(learner, length) for _ in range(count)]
            # Of several processes one may try more sizes than another: none of them waits for the others here.
            alone = replace(learner, world=ALONE, micro_batch_tokens=count * length)
            for model in (learner.teacher, learner.reference):
                if model is not None and learner.objective.credits:
                    logprobs(alone, model, samples)
            with training_mode(learner):
                accumulate(learner, pack(samples, learner.device), float(count * length))
        finally:
            drop_gradients(learner)

    search = SizeSearch(memory, run, sequences)
    try:
        found = search.find(f"a step over one sequence of {length} tokens")
    finally:
        del moments
    return found * length, search.attempts


def _longest(learner: Learner, length: int) -> Sample:
    written = torch.ones(length, dtype=torch.bool)
    written[0] = False
    signals = Signals(**{name: torch.zeros(length) for name in SIGNALS})
    return Sample(torch.arange(length) % learner.codec.vocabulary_size, written, by_student=True, signals=signals)
