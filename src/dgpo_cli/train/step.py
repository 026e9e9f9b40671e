"""The arithmetic of one optimizer step: weight, sum, divide by the weight of the whole step.

Logits exist for one chunk of tokens at a time. Each chunk is differentiated down to its hidden states at once; the
body of the model is differentiated once per micro-batch from the gradients collected there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgpo_cli.errors import TrainingError
from dgpo_cli.models.vocab import chunks, gather_logprobs, hidden_states, project, token_logprobs
from dgpo_cli.objectives.base import Need, TokenBatch
from dgpo_cli.objectives.divergence import entropy, log_probs
from dgpo_cli.train.batch import Batch, Sample, micro_batches, pad
from dgpo_cli.train.learner import Learner, training_mode
from dgpo_cli.train.shard import split

_FIELDS = (
    "behavior_logprobs",
    "sampling_logprobs",
    "teacher_logprobs",
    "reference_logprobs",
    "advantages",
    "returns",
    "old_values",
)


def optimizer_step(learner: Learner, samples: Sequence[Sample], *, policy: bool = True) -> dict[str, float]:
    """One update of the student (and of the critic, where there is one) from all of `samples`.

    Every process is given the same samples and takes a share of them through its models; what they add up is summed
    over the processes before it is judged, clipped or applied.

    `policy` False updates the critic alone. Returns weighted mean metrics. Raises TrainingError if a loss or a
    gradient norm is not finite, before any weight has moved.
    """
    total_weight = sum(sample.weight * sample.num_trained for sample in samples)
    if not total_weight:
        return {}
    denominator = learner.objective.denominator(total_weight, sum(s.weight * s.num_trained > 0 for s in samples))
    with split(learner.trained()):
        return _update(learner, samples, total_weight, denominator, policy=policy)


def _update(
    learner: Learner, samples: Sequence[Sample], total_weight: float, denominator: float, *, policy: bool
) -> dict[str, float]:
    sums: dict[str, float] = {}
    mine = [samples[i] for i in learner.world.share([_cost(sample) for sample in samples])]
    groups = micro_batches(mine, learner.micro_batch_tokens)
    # Layers of sharded models come together only where all processes make as many passes.
    passes = max(learner.world.gather(len(groups))) if learner.world.sharded else len(groups)
    for group in groups:
        batch = pad([mine[i] for i in group], learner.codec.pad_id, learner.device)
        with training_mode(learner):
            added = _accumulate(learner, batch, denominator)
        for name, value in added.items():
            sums[name] = sums.get(name, 0.0) + value
    for _ in range(passes - len(groups)):
        with training_mode(learner):
            _idle(learner)
    sums = learner.world.sum(sums)
    weights = {"nll": sum(sample.weight * sample.num_trained for sample in samples if not sample.by_student)}
    metrics = {name: value / weight for name, value in sums.items() if (weight := weights.get(name, total_weight))}
    broken = [name for name, value in metrics.items() if name.endswith("_loss") and not math.isfinite(value)]
    if broken:
        _drop_gradients(learner)
        raise TrainingError(
            f"{broken[0]} is {metrics[broken[0]]} at update {learner.policy_optimizer.updates}",
            hint="lower the learning rate; the last good state is kept in the run folder",
        )
    for name, optimizer in learner.optimizers():
        if name == "policy" and not policy:
            optimizer.adam.zero_grad(set_to_none=True)
            continue
        learner.world.add_up_gradients(optimizer.parameters)
        metrics |= optimizer.step(name)
    return metrics


def _cost(sample: Sample) -> int:
    """Tokens through models, to share the work by; a teacher's pass is taken to be worth a student's."""
    return sample.length * (2 if sample.kl_weight else 1)


def _idle(learner: Learner) -> None:
    """A pass of all models under training that adds nothing to their gradients."""
    token = torch.zeros((1, 1), dtype=torch.long, device=learner.device)
    roots = [hidden_states(learner.student, token, torch.ones_like(token))]
    if learner.critic is not None:
        roots.append(learner.critic(token, torch.ones_like(token)))
    torch.autograd.backward(roots, [torch.zeros_like(root) for root in roots])


def _accumulate(learner: Learner, batch: Batch, denominator: float) -> dict[str, float]:
    """Add the gradients of one micro-batch; returns weighted sums of its losses and metrics."""
    hidden = batch.flatten(hidden_states(learner.student, batch.input_ids, batch.attention_mask))  # [N, H]
    roots, leaves = [hidden], [hidden.detach().requires_grad_()]
    if learner.critic is not None:
        values = batch.flatten(learner.critic(batch.input_ids, batch.attention_mask))  # [N]
        roots.append(values)
        leaves.append(values.detach().requires_grad_())
    teacher_hidden = _teacher_hidden(learner, batch)
    fields = {name: batch.field(name) for name in _FIELDS}
    fields |= {"token_ids": batch.token_ids, "weights": batch.weights, "sequence_index": batch.sequence_index}
    fields |= {"kl_weight": batch.kl_weight, "by_student": batch.by_student}
    fields["sequence_log_ratio"] = _sequence_log_ratio(learner, batch, leaves[0])
    sums: dict[str, Tensor] = {}
    for rows in chunks(len(hidden), learner.chunk_tokens):
        tokens = _token_batch(learner, leaves, teacher_hidden, fields, rows)
        result = learner.objective.loss(tokens)
        total = torch.stack([(term * tokens.weights).sum() for term in result.terms.values()]).sum()
        torch.autograd.backward(total / denominator)
        logged = {f"{name}_loss": term for name, term in result.terms.items()} | _signs(tokens) | result.metrics
        for name, value in logged.items():
            added = (value.detach() * tokens.weights).sum()
            sums[name] = sums[name] + added if name in sums else added
    pairs = [(root, leaf.grad) for root, leaf in zip(roots, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])
    return {name: float(value) for name, value in sums.items()}


@torch.no_grad()
def _signs(tokens: TokenBatch) -> dict[str, Tensor]:
    """What is logged of every method [n]: the student's entropy, and its NLL of the text that the teacher wrote."""
    assert tokens.by_student is not None
    return {
        "entropy": entropy(log_probs(tokens.logits)),
        "nll": torch.where(tokens.by_student, 0.0, -tokens.logprobs),
    }


def _teacher_hidden(learner: Learner, batch: Batch) -> Tensor | None:
    if Need.TEACHER_DISTRIBUTION not in learner.objective.needs or not batch.needs_teacher:
        return None
    assert learner.teacher is not None, f"{type(learner.objective).__name__} needs a teacher"
    with torch.no_grad():
        return batch.flatten(hidden_states(learner.teacher, batch.input_ids, batch.attention_mask))


def _sequence_log_ratio(learner: Learner, batch: Batch, hidden: Tensor) -> Tensor | None:
    """Mean log-ratio to the policy that wrote it of each token's sequence [N], which no chunk sees as a whole."""
    if Need.SEQUENCE_LOG_RATIO not in learner.objective.needs:
        return None
    behavior = batch.field("behavior_logprobs")
    assert behavior is not None
    logprobs = token_logprobs(
        learner.student,
        hidden.detach(),
        batch.token_ids,
        vocabulary_size=learner.codec.vocabulary_size,
        chunk_size=learner.chunk_tokens,
        temperature=learner.temperature,
    )
    rows = batch.sequence_index
    sums, counts = (torch.zeros(len(batch.samples), device=rows.device) for _ in range(2))
    sums.index_add_(0, rows, logprobs - behavior)
    counts.index_add_(0, rows, torch.ones_like(behavior))
    return (sums / counts.clamp(min=1))[rows]


def _token_batch(
    learner: Learner,
    leaves: Sequence[Tensor],
    teacher_hidden: Tensor | None,
    fields: dict[str, Tensor | None],
    rows: slice,
) -> TokenBatch:
    size, temperature = learner.codec.vocabulary_size, learner.temperature
    here = {name: None if value is None else value[rows] for name, value in fields.items()}
    logits = project(learner.student, leaves[0][rows], size, temperature)  # [n, V]
    teacher_logits = None
    if teacher_hidden is not None:
        assert learner.teacher is not None
        with torch.no_grad():
            teacher_logits = project(learner.teacher, teacher_hidden[rows], size, temperature)
    token_ids = here["token_ids"]
    assert token_ids is not None
    return TokenBatch(
        logprobs=gather_logprobs(logits, token_ids),
        logits=logits,
        teacher_logits=teacher_logits,
        values=leaves[1][rows] if len(leaves) > 1 else None,
        **here,  # type: ignore[arg-type]
    )


def _drop_gradients(learner: Learner) -> None:
    for _, optimizer in learner.optimizers():
        optimizer.adam.zero_grad(set_to_none=True)
