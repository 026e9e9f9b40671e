"""Scored rollouts to episodes: the log-probabilities and values that an objective asks for, without gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.models.critic import Critic
from dgpo_cli.models.finite import require_finite
from dgpo_cli.models.lm_head import hidden_states, token_logprobs
from dgpo_cli.objectives.base import Need, ScoredEpisode
from dgpo_cli.training.batch import Batch, Sample, micro_batches, pack
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.step import critic_values


def fill(learner: Learner, trajectories: Sequence[Trajectory], samples: Sequence[Sample]) -> list[ScoredEpisode]:
    """Episodes with what `objective.needs` names. The teacher reads only the sequences that the objective wants it for.
    `samples` are those of the trajectories. The teacher's distribution over the vocabulary is no part of an episode:
    `step.py` computes it where the credit gives an episode a `kl_weight`.

    `behavior_logprobs` are recomputed here, as the reference does, so that the first ratio is exactly 1, or are those
    that the engine told, which differ by its rounding.
    """
    objective = learner.objective
    behavior, values = _of_student(learner, samples)
    teacher: list[Tensor | None] = [None] * len(samples)
    if Need.TEACHER_LOGPROBS in objective.needs:
        assert learner.teacher is not None, f"{type(objective).__name__} needs a teacher"
        wanted = [i for i, t in enumerate(trajectories) if t.score is not None and objective.kl_applies(t.score)]
        scored = logprobs(learner, learner.teacher, [samples[i] for i in wanted])
        for i, row in zip(wanted, scored, strict=True):
            require_finite(learner.teacher, row, "log-probabilities")
            teacher[i] = row
    reference: Sequence[Tensor | None] = [None] * len(samples)
    if Need.REFERENCE_LOGPROBS in objective.needs:
        assert learner.reference is not None, f"{type(objective).__name__} needs a reference"
        reference = logprobs(learner, learner.reference, samples)
    episodes = []
    for i, trajectory in enumerate(trajectories):
        assert trajectory.score is not None, f"{trajectory.key} has no score"
        episodes.append(
            ScoredEpisode(
                group=trajectory.question.key,
                score=trajectory.score,
                written=samples[i].written,
                behavior_logprobs=behavior[i],
                teacher_logprobs=teacher[i],
                reference_logprobs=reference[i],
                values=values[i],
            )
        )
    return episodes


def _of_student(learner: Learner, samples: Sequence[Sample]) -> tuple[list[Tensor], Sequence[Tensor | None]]:
    """Log-probabilities and, where they are needed, values. A critic that shares the student's body shares its pass."""
    told = [row for sample in samples if (row := sample.signals.sampling_logprobs) is not None]
    known = learner.engine_logprobs and len(told) == len(samples)
    if Need.VALUES not in learner.objective.needs:
        return told if known else logprobs(learner, learner.student, samples), [None] * len(samples)
    critic = learner.critic
    assert critic is not None, f"{type(learner.objective).__name__} needs a critic"
    if known and isinstance(critic, Critic):
        (values,) = _each(learner, samples, lambda batch: (batch.flatten(critic(batch.packed)),), outputs=1)
        return told, values

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        hidden = batch.flatten(hidden_states(learner.student, batch.packed))
        values = critic_values(learner, batch, hidden)
        assert values is not None
        return _written(learner, learner.student, batch, hidden), values

    behavior, values = _each(learner, samples, compute, outputs=2)
    return (told if known else behavior), values


def logprobs(learner: Learner, model: PreTrainedModel, samples: Sequence[Sample]) -> list[Tensor]:
    def compute(batch: Batch) -> tuple[Tensor]:
        return (_written(learner, model, batch, batch.flatten(hidden_states(model, batch.packed))),)

    return _each(learner, samples, compute, outputs=1)[0]


def _written(learner: Learner, model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Tensor:
    """log p [N] of the tokens that were written, from hidden states [N, H]."""
    return token_logprobs(
        model,
        hidden,
        batch.token_ids,
        vocabulary_size=learner.codec.vocabulary_size,
        chunk_size=learner.chunk_tokens,
        temperature=learner.temperature,
    )


@torch.no_grad()
def _each(
    learner: Learner, samples: Sequence[Sample], compute: Callable[[Batch], Sequence[Tensor]], *, outputs: int
) -> list[list[Tensor]]:
    """Run `compute` (batch to `outputs` tensors [N]) over micro-batches; for each of them full-length tensors [L] in
    the order of `samples`. Each process runs a share, and all get every tensor.
    """
    rows = [[torch.zeros(len(sample.token_ids)) for sample in samples] for _ in range(outputs)]
    share = learner.world.share([sample.length for sample in samples])
    mine = [samples[i] for i in share]
    for group in micro_batches(mine, learner.micro_batch_tokens):
        batch = pack([mine[i] for i in group], learner.device)
        for output, values in zip(rows, compute(batch), strict=True):
            for i, row in zip(group, batch.unflatten(values), strict=True):
                output[share[i]] = row
    for output in rows:
        learner.world.add_up(output)  # of each row one process has other than zeros
    return rows
