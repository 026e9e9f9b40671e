"""The processes of a training run, and the messages between them.

Every process knows all sequences of a step and does the same arithmetic with them; rollouts and passes of the models
are shared out and their results brought together, in the order of one process. Only JSON and numbers are exchanged,
never an object that could run code. A process that cannot go on reports that in its next exchange, so that all end with
one message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from dgpo_cli.errors import TrainingError, first_line

BUCKET = 2**25  # ours, elements that are summed at once: 128 MiB of float32 beside the gradients


class ProcessFailed(TrainingError):
    """A process of the run cannot go on, and every process knows."""


class Processes:
    """`size` processes of which this is number `rank`; `device` is where exchanged tensors have to be.

    `sharded`: models under training are split over them, and add up their gradients themselves.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | None = None, *, sharded: bool = False
    ) -> None:
        self.rank, self.size, self.sharded = rank, size, sharded
        self.device = torch.device("cpu") if device is None else device
        self._failed: ProcessFailed | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the files and the output of the run."""
        return self.rank == 0

    def shares(self, costs: Sequence[float]) -> list[list[int]]:
        """Indices of `costs` by process: each item, costliest first, to the least loaded (LPT, Graham 1969)."""
        found: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0.0] * self.size
        for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            least = min(range(self.size), key=lambda r: (loads[r], len(found[r]), r))
            found[least].append(index)
            loads[least] += costs[index]
        return [sorted(share) for share in found]

    def share(self, costs: Sequence[float]) -> list[int]:
        """The indices of `costs` that are this process's."""
        return self.shares(costs)[self.rank]

    def gather(self, value: Any) -> list[Any]:
        """The JSON value of every process, by rank. Raises Failed where one of them cannot go on."""
        return [value] if self.size == 1 else self._exchange({"value": value})

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums by name; a process may lack names that others have."""
        total: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, of the same shape and dtype in every process, by its sum over the processes."""
        self.gather(None)
        if self.size > 1:
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(self.device)
                _all(distributed.all_reduce, flat)
                _copy(flat, bucket)

    def add_up_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Gradients of the whole step. One that no process has stays None, as it would with one process."""
        if self.sharded:
            return
        present = self.gather("".join(str(int(p.grad is not None)) for p in parameters))
        used = [p for p, flags in zip(parameters, zip(*present, strict=True), strict=True) if "1" in flags]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([p.grad for p in used if p.grad is not None])

    @torch.no_grad()
    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        self.gather(None)
        if self.size > 1:
            for bucket in _buckets([tensor.detach() for tensor in tensors]):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(self.device)
                _all(distributed.broadcast, flat, 0)
                _copy(flat, bucket)

    def fail(self, message: str, hint: str | None) -> tuple[str, str | None] | None:
        """Report to the others that this process cannot go on; returns the message for the user, None if another shows
        it.

        Returns when every process has failed or come to an exchange, so that all of them end.
        """
        if self._failed is None:
            try:
                self._exchange({"error": [message, hint]})
            except ProcessFailed:
                pass
            except TrainingError:  # the others are gone
                return message, hint
        assert self._failed is not None
        return (self._failed.message, self._failed.hint) if self.first else None

    def _exchange(self, envelope: dict[str, Any]) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(envelope).encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        _all(distributed.all_gather, lengths, length)
        counts = [int(n) for n in lengths]
        sent = torch.zeros(max(counts), dtype=torch.uint8, device=self.device)
        sent[: len(data)] = data.to(self.device)
        received = [torch.zeros_like(sent) for _ in range(self.size)]
        _all(distributed.all_gather, received, sent)
        envelopes = [
            json.loads(row[:count].cpu().numpy().tobytes()) for row, count in zip(received, counts, strict=True)
        ]
        for told in envelopes:
            if "error" in told:
                self._failed = ProcessFailed(*told["error"])
                raise self._failed
        return [told["value"] for told in envelopes]


ALONE = Processes()


def _all(operation: Any, *arguments: Any) -> None:
    """An operation of all processes. Raises TrainingError where one of them is gone."""
    try:
        operation(*arguments)
    except (RuntimeError, ValueError) as error:  # the latter after a process has left
        raise TrainingError(
            f"another process of this run is gone: {first_line(error)}",
            hint="what it said before tells why; the same command goes on from what was saved",
        ) from error


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """In order, each of one dtype and, unless a tensor alone is larger, of at most BUCKET elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _copy(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
