"""Trajectories to packed model input to flat trained tokens. The only file that packs, shifts or masks.

Shapes: B sequences, M tokens of them, N trained tokens of the batch, L tokens of one trajectory.
Per-token tensors of a `Sample` are about the token at their index; the model's output that predicts token t sits at
position t - 1, and only `Batch.flatten` knows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.models.packed import Packed
from dgpo_cli.objectives.base import SIGNALS, Signals, TrainedTokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to train on, and what is known of each of its tokens."""

    token_ids: Tensor  # [L]
    written: Tensor  # [L] bool
    weight: float = 1.0  # of every written token
    kl_weight: float = 1.0  # of the teacher's distribution; 0 skips the teacher's forward pass
    by_student: bool = False
    signals: Signals = field(default_factory=Signals)  # [L]
    rewards: Tensor | None = None  # [L] for a reader of the episode: no loss needs them
    length: int = field(init=False)  # tokens that a model has to read: up to the last written one

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        *,
        weight: float = 1.0,
        by_student: bool = False,
        signals: Signals = Signals(),
    ) -> Sample:
        """A trajectory as tensors of its length, with what is known of its tokens."""
        token_ids, written = torch.tensor(trajectory.token_ids), torch.tensor(trajectory.written)
        return cls(token_ids, written, weight, by_student=by_student, signals=signals)

    def __post_init__(self) -> None:
        places = self.written.nonzero()
        object.__setattr__(self, "length", int(places[-1]) + 1 if len(places) else 0)

    @property
    def num_trained(self) -> int:
        return int(self.written.sum()) if self.weight else 0


@dataclass(slots=True)
class Batch:
    """Sequences laid end to end and the N written tokens in them, sequence by sequence."""

    samples: Sequence[Sample]
    packed: Packed
    trained: Tensor  # [M] bool, True where the token itself is trained on (never the first of a sequence)

    @property
    def needs_teacher(self) -> bool:
        return any(sample.kl_weight for sample in self.samples)

    @property
    def token_ids(self) -> Tensor:
        return self.packed.input_ids[self.trained]  # [N]

    @property
    def sequence_index(self) -> Tensor:
        lengths = torch.tensor(self.packed.lengths, device=self.trained.device)
        return torch.arange(len(lengths), device=self.trained.device).repeat_interleave(lengths)[self.trained]  # [N]

    @property
    def weights(self) -> Tensor:
        return self._per_sequence([s.weight for s in self.samples])  # [N]

    @property
    def kl_weight(self) -> Tensor:
        return self._per_sequence([s.kl_weight for s in self.samples])  # [N]

    @property
    def by_student(self) -> Tensor:
        return self._per_sequence([float(s.by_student) for s in self.samples]).bool()  # [N]

    def _per_sequence(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.trained.device)[self.sequence_index]

    def signal(self, name: str) -> Tensor | None:
        """One of `Signals` [N], or None where not every sample has it: a teacher reads some sequences and not others,
        and where its log-probabilities are trained on, `micro_batches` has kept the two apart.
        """
        parts = []
        for sample in self.samples:
            values: Tensor | None = getattr(sample.signals, name)
            if values is None:
                return None
            parts.append(values[: sample.length][sample.written[: sample.length]])
        return torch.cat(parts).to(self.trained.device)

    def tokens(self, *, values: Tensor | None, sequence_log_ratio: Tensor | None) -> TrainedTokens:
        """The trained tokens with all that is known of them. `values` [N] are those of the critic."""
        return TrainedTokens(
            token_ids=self.token_ids,
            weights=self.weights,
            sequence_index=self.sequence_index,
            by_student=self.by_student,
            kl_weight=self.kl_weight,
            sequence_log_ratio=sequence_log_ratio,
            values=values,
            **{name: self.signal(name) for name in SIGNALS},
        )

    def flatten(self, output: Tensor) -> Tensor:
        """Model output [M, ...] to the rows that predict the trained tokens [N, ...]."""
        return output[:-1][self.trained[1:]]

    def unflatten(self, values: Tensor) -> list[Tensor]:
        """Per-token values [N] back to one full-length tensor [L] per sample on the CPU, zero where not written."""
        full = []
        counts = [int(s.written.sum()) for s in self.samples]
        parts = torch.split(values.detach().float().cpu(), counts)
        for sample, part in zip(self.samples, parts, strict=True):
            row = torch.zeros(len(sample.token_ids))
            row[sample.written] = part
            full.append(row)
        return full


def pack(samples: Sequence[Sample], device: torch.device) -> Batch:
    packed = Packed.of([sample.token_ids[: sample.length] for sample in samples], device)
    trained = torch.cat([sample.written[: sample.length] for sample in samples])
    return Batch(samples, packed, trained.to(device))


def micro_batches(samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
    """Indices of samples that go through the model together: alike in length, at most `token_budget` tokens.

    Samples that need the teacher are kept apart from those that do not, so that its pass covers nothing else. A sample
    without a written token appears in no batch.
    """
    groups: list[list[int]] = []
    tokens = 0  # of the last group
    order = sorted(
        (i for i, sample in enumerate(samples) if sample.length),
        key=lambda i: (samples[i].kl_weight == 0, -samples[i].length, i),
    )
    for index in order:
        sample = samples[index]
        if groups:
            first = samples[groups[-1][0]]
            same = (first.kl_weight == 0) == (sample.kl_weight == 0)
            if same and tokens + sample.length <= token_budget:
                groups[-1].append(index)
                tokens += sample.length
                continue
        groups.append([index])
        tokens = sample.length
    return groups
