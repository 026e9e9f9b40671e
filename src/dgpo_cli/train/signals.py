"""Scored rollouts to episodes: the log-probabilities and values that an objective asks for, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dgpo_cli.core.types import Trajectory
from dgpo_cli.models.vocab import hidden_states, token_logprobs
from dgpo_cli.objectives.base import Episode, Need
from dgpo_cli.train.batch import Batch, Sample, micro_batches, pack
from dgpo_cli.train.learner import Learner


def fill(learner: Learner, trajectories: Sequence[Trajectory]) -> list[Episode]:
    """Episodes with what `objective.needs` names. The teacher reads only the sequences that the objective wants it for.

    `behavior_logprobs` are recomputed here, as the reference does, so that the first ratio is exactly 1.
    """
    objective = learner.objective
    samples = [Sample.of(t, by_student=True) for t in trajectories]
    behavior = _logprobs(learner, learner.student, samples)
    teacher: list[Tensor | None] = [None] * len(samples)
    if Need.TEACHER_LOGPROBS in objective.needs:
        assert learner.teacher is not None, f"{type(objective).__name__} needs a teacher"
        wanted = [i for i, t in enumerate(trajectories) if t.score is not None and objective.wants_teacher(t.score)]
        scored = _logprobs(learner, learner.teacher, [samples[i] for i in wanted])
        for i, row in zip(wanted, scored, strict=True):
            teacher[i] = row
    reference: Sequence[Tensor | None] = [None] * len(samples)
    if Need.REFERENCE_LOGPROBS in objective.needs:
        assert learner.reference is not None, f"{type(objective).__name__} needs a reference"
        reference = _logprobs(learner, learner.reference, samples)
    values: Sequence[Tensor | None] = [None] * len(samples)
    if Need.VALUES in objective.needs:
        values = _values(learner, samples)
    episodes = []
    for i, trajectory in enumerate(trajectories):
        assert trajectory.score is not None, f"{trajectory.key} has no score"
        episodes.append(
            Episode(
                group=f"{trajectory.question.qa_set}/{trajectory.question.id}",
                score=trajectory.score,
                written=samples[i].written,
                behavior_logprobs=behavior[i],
                teacher_logprobs=teacher[i],
                reference_logprobs=reference[i],
                values=values[i],
            )
        )
    return episodes


@torch.no_grad()
def _each(learner: Learner, samples: Sequence[Sample], compute: object) -> list[Tensor]:
    """Run `compute(batch) -> [N]` over micro-batches; full-length tensors [L] in the order of `samples`."""
    assert callable(compute)
    rows = [torch.zeros(len(sample.token_ids)) for sample in samples]
    for group in micro_batches(samples, learner.micro_batch_tokens):
        batch = pack([samples[i] for i in group], learner.device)
        for i, row in zip(group, batch.unflatten(compute(batch)), strict=True):
            rows[i] = row
    return rows


def _logprobs(learner: Learner, model: PreTrainedModel, samples: Sequence[Sample]) -> list[Tensor]:
    def compute(batch: Batch) -> Tensor:
        hidden = batch.flatten(hidden_states(model, batch.packed))
        return token_logprobs(
            model,
            hidden,
            batch.token_ids,
            vocabulary_size=learner.codec.vocabulary_size,
            chunk_size=learner.chunk_tokens,
            temperature=learner.temperature,
        )

    return _each(learner, samples, compute)


def _values(learner: Learner, samples: Sequence[Sample]) -> list[Tensor]:
    critic = learner.critic
    assert critic is not None, f"{type(learner.objective).__name__} needs a critic"
    return _each(learner, samples, lambda batch: batch.flatten(critic(batch.packed)))
