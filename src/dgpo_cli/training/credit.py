"""Trajectories to samples: the credit of each written token.

Deviation from the reference: where a method whitens advantages, it is over written tokens only (the reference includes
retrieved ones), and no episode of a batch is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dgpo_cli.core.text import comparable
from dgpo_cli.core.trajectory import Trajectory, refuse_broken_search
from dgpo_cli.core.types import StopReason
from dgpo_cli.objectives.advantage import whiten
from dgpo_cli.objectives.base import Credit, Need, ScoredEpisode, Signals
from dgpo_cli.training import signals
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.source import Sequences


def samples_of(learner: Learner, sequences: Sequences) -> tuple[list[Sample], dict[str, float]]:
    """Samples of a step, whoever wrote them, and the metrics of what the student wrote.

    Raises RetrievalError when so many searches failed that the retriever is broken, not the model.
    """
    samples = teacher_samples(sequences.by_teacher)
    own = sequences.by_student
    if not own:
        return samples, {}
    refuse_broken_search([cause for t in own if (cause := t.failed_search) is not None], len(own))
    if learner.objective.credits:
        written, metrics = student_samples(learner, own)
    else:
        # A failed search gives its episode weight 0: the model is not to blame for it.
        written = [Sample.of(t, weight=float(t.failed_search is None), by_student=True) for t in own]
        metrics = rollout_metrics(own)
    return samples + written, metrics | {"student_share": len(own) / (len(own) + len(samples))}


def teacher_samples(trajectories: Sequence[Trajectory]) -> list[Sample]:
    """Samples of trajectories that the teacher wrote: every written token counts once."""
    return [Sample.of(t) for t in trajectories]


def rollout_sample(trajectory: Trajectory) -> Sample:
    """A sample that the student wrote, with the engine's log-probabilities."""
    told = None if trajectory.logprobs is None else torch.tensor(trajectory.logprobs)
    return Sample.of(trajectory, by_student=True, signals=Signals(sampling_logprobs=told))


def student_samples(learner: Learner, trajectories: Sequence[Trajectory]) -> tuple[list[Sample], dict[str, float]]:
    """Samples of scored rollouts with advantages and returns, and the metrics of the step's episodes."""
    samples = [rollout_sample(t) for t in trajectories]
    episodes = signals.fill(learner, trajectories, samples)
    trained = [t.failed_search is None for t in trajectories]
    # What failed for want of a search is neither trained on nor a measure of its group.
    credit_of = iter(learner.objective.credit([e for e, counts in zip(episodes, trained, strict=True) if counts]))
    credited = [
        next(credit_of) if counts else Credit(torch.zeros_like(episode.behavior_logprobs), weight=0.0)
        for episode, counts in zip(episodes, trained, strict=True)
    ]
    advantages = [credit.advantages for credit in credited]
    if learner.objective.whitens_advantages:  # over the trained episodes of the step; the others' stay zero
        advantages = whiten(advantages, [e.written & counts for e, counts in zip(episodes, trained, strict=True)])
    metrics = episode_metrics(trajectories, episodes, credited) | _needs_metrics(learner, samples, episodes)
    parts = zip(samples, episodes, credited, advantages, strict=True)
    return [_credited(*part) for part in parts], metrics


def _credited(sample: Sample, episode: ScoredEpisode, credit: Credit, advantages: Tensor) -> Sample:
    signals = replace(
        sample.signals,
        behavior_logprobs=episode.behavior_logprobs,
        teacher_logprobs=episode.teacher_logprobs,
        reference_logprobs=episode.reference_logprobs,
        advantages=advantages,
        returns=credit.returns,
        old_values=episode.values,
    )
    return replace(sample, weight=credit.weight, kl_weight=credit.kl_weight, signals=signals, rewards=credit.rewards)


def episode_metrics(
    trajectories: Sequence[Trajectory], episodes: Sequence[ScoredEpisode], credits: Sequence[Credit]
) -> dict[str, float]:
    """Means over the episodes of a step; log-probabilities over the written tokens that they are about."""
    metrics = rollout_metrics(trajectories)
    right = [e.behavior_logprobs[e.written] for e in episodes if e.score.correct]
    if (logprobs := _joined(right)) is not None:
        metrics["right_logprob"] = float(logprobs.mean())
    for name in {name for c in credits for name in c.metrics}:
        values = [c.metrics[name] for c in credits if name in c.metrics]
        metrics[name] = sum(values) / len(values)
    return metrics


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the student's episodes of a step."""
    count = len(trajectories)
    scores = [t.score for t in trajectories if t.score is not None]
    made, turns = sum(len(t.searches) for t in trajectories), sum(t.turns for t in trajectories)
    metrics = {
        "em": sum(s.correct for s in scores) / count,
        "reward": sum(s.total for s in scores) / count,
        "searches": sum(len(t.searches) for t in trajectories) / count,
        "failed_searches": sum(t.stop is StopReason.SEARCH_FAILED for t in trajectories) / count,
        "answered": sum(t.stop is StopReason.ANSWERED for t in trajectories) / count,
        "tokens": sum(len(t.token_ids) for t in trajectories) / count,
        "written_tokens": sum(t.num_written for t in trajectories) / count,
    }
    if made:  # shares of what did not happen are left out, here and below
        metrics["blank_queries"] = sum(not call.query.strip() for t in trajectories for call in t.searches) / made
        metrics["repeated_queries"] = sum(_repeats(t) for t in trajectories) / made
    if turns:
        metrics["valid_actions"] = 1 - sum(t.invalid_actions for t in trajectories) / turns
    for name in {name for s in scores for name in s.parts}:
        metrics[f"reward_{name}"] = sum(s.parts.get(name, 0.0) for s in scores) / count
    return metrics


def _repeats(trajectory: Trajectory) -> int:
    """Searches of an episode that ask what an earlier one asked."""
    queries = [comparable(call.query) for call in trajectory.searches]
    return len(queries) - len(set(queries))


def _needs_metrics(learner: Learner, samples: Sequence[Sample], episodes: Sequence[ScoredEpisode]) -> dict[str, float]:
    """Distances of log-probabilities: of the engine to the trainer, and of the teacher to the student."""
    metrics = {}
    pairs = [
        (told[e.written], e.behavior_logprobs[e.written])
        for sample, e in zip(samples, episodes, strict=True)
        if (told := sample.signals.sampling_logprobs) is not None
    ]
    gaps = _joined([(a - b).abs() for a, b in pairs])
    if gaps is not None and not learner.objective.sampled_from_teacher:
        metrics["engine_mismatch"] = float(gaps.max())
    if Need.TEACHER_LOGPROBS in learner.objective.needs:
        wrong = [
            (e.behavior_logprobs - e.teacher_logprobs)[e.written]
            for e in episodes
            if e.teacher_logprobs is not None and not e.score.correct
        ]
        if (gaps := _joined(wrong)) is not None:
            metrics["teacher_k1_wrong"] = float(gaps.mean())
    return metrics


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """All values in one row; None where no token is among them: a mean of nothing is left out, not NaN."""
    values = torch.cat(list(parts)) if parts else torch.zeros(0)
    return values if len(values) else None
