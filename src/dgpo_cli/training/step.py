"""The arithmetic of one optimizer step: weight, sum, divide by the weight of the whole step.

Distributions exist for one chunk of tokens at a time. Each chunk is differentiated down to its hidden states at once;
the body of the model is differentiated once per micro-batch from the gradients collected there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgpo_cli.errors import TrainingError
from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.models.finite import require_finite
from dgpo_cli.models.lm_head import (
    backward_to_hidden,
    chunks,
    compute_head,
    hidden_states,
    logits_gradient,
    project,
    token_logprobs,
)
from dgpo_cli.models.packed import Packed
from dgpo_cli.models.ways import WAYS
from dgpo_cli.objectives.base import Need, TrainedTokens
from dgpo_cli.training.batch import Batch, Sample, micro_batches, pack
from dgpo_cli.training.fsdp import split
from dgpo_cli.training.learner import Learner, training_mode
from dgpo_cli.training.sizes.memory import BLOCK_LOGITS


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
    counting = [sample for sample in samples if sample.num_trained]  # nothing else is read
    mine = [counting[i] for i in learner.world.share([_cost(sample) for sample in counting])]
    groups = micro_batches(mine, learner.micro_batch_tokens)
    # Layers of sharded models come together only where all processes make as many passes.
    passes = max(learner.world.gather(len(groups))) if learner.world.sharded else len(groups)
    for group in groups:
        batch = pack([mine[i] for i in group], learner.device)
        with training_mode(learner):
            added = accumulate(learner, batch, denominator)
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
        drop_gradients(learner)
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
    """Tokens through models, to share the work by; a teacher's pass counts like a student's."""
    return sample.length * (2 if sample.kl_weight else 1)


def _idle(learner: Learner) -> None:
    """A pass of all models under training that adds nothing to their gradients."""
    one = Packed.of([torch.zeros(1, dtype=torch.long)], learner.device)
    roots = [hidden_states(learner.student, one)]
    if isinstance(learner.critic, Critic):
        roots.append(learner.critic(one))
    torch.autograd.backward(roots, [torch.zeros_like(root) for root in roots])


def accumulate(learner: Learner, batch: Batch, denominator: float) -> dict[str, float]:
    """Add the gradients of one micro-batch; returns weighted sums of its losses and metrics."""
    hidden = batch.flatten(hidden_states(learner.student, batch.packed))  # [N, H]
    values = critic_values(learner, batch, hidden)  # [N]
    seen, value_leaf = hidden.detach(), None if values is None else values.detach().requires_grad_()
    teacher_hidden = _teacher_hidden(learner, batch)
    tokens = batch.tokens(values=value_leaf, sequence_log_ratio=_sequence_log_ratio(learner, batch, seen))
    sums, grad_hidden = vocabulary_pass(learner, seen, teacher_hidden, tokens, denominator)
    torch.autograd.backward(hidden, grad_hidden)
    if values is not None and value_leaf is not None and value_leaf.grad is not None:
        torch.autograd.backward(values, value_leaf.grad)
    return dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True)) if sums else {}  # one wait for a GPU


def critic_values(learner: Learner, batch: Batch, hidden: Tensor) -> Tensor | None:
    """Values [N] before each trained token is written; `hidden` [N, H] are the student's states there."""
    critic = learner.critic
    if critic is None or isinstance(critic, SharedCritic):
        return None if critic is None else critic(hidden)
    return batch.flatten(critic(batch.packed))


def vocabulary_pass(
    learner: Learner,
    hidden: Tensor,
    teacher_hidden: Tensor | None,
    tokens: TrainedTokens,
    denominator: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses from hidden states [N, H] and back, chunk by chunk.

    A chunk is as large as matrix products want it; what is computed of its distributions goes over them a dozen times,
    so that is done for a block of them at a time. Adds the gradients of the output layer and of `tokens`; returns
    weighted sums of losses and metrics, and the gradient with respect to the hidden states [N, H].
    """
    grad_hidden = torch.zeros_like(hidden)
    size, temperature = learner.codec.vocabulary_size, learner.temperature
    block = max(1, (WAYS.block_logits if hidden.device.type == "cuda" else BLOCK_LOGITS[0]) // size)
    head = compute_head(learner.student)
    sums: dict[str, Tensor] = {}
    logits = teacher_logits = None
    for rows in chunks(len(hidden), learner.chunk_tokens):
        logits = project(learner.student, hidden[rows], size, temperature, out=logits, head=head)  # [n, V]
        if teacher_hidden is not None:
            assert learner.teacher is not None
            teacher_logits = project(learner.teacher, teacher_hidden[rows], size, temperature, out=teacher_logits)
        for part in chunks(len(logits), block):
            here = slice(rows.start + part.start, rows.start + part.stop)
            logits[part] = _block_pass(
                learner,
                logits[part],
                None if teacher_logits is None else teacher_logits[part],
                tokens.rows(here),
                denominator,
                sums,
            )
        if hidden.device.type != "cpu":  # its allocator keeps what is freed, so nothing is gained by holding it
            teacher_logits = None
        grad_hidden[rows] = backward_to_hidden(learner.student, hidden[rows], logits, head=head)
        if hidden.device.type != "cpu":
            logits = None
    return sums, grad_hidden


def _block_pass(
    learner: Learner,
    logits: Tensor,
    teacher_logits: Tensor | None,
    rows: TrainedTokens,
    denominator: float,
    sums: dict[str, Tensor],
) -> Tensor:
    """Gradient [r, V] of the losses with respect to logits [r, V]; adds to `sums` and to the gradients of `rows`."""
    log_probs = logits.log_softmax(dim=1)
    # `log_probs` and `logprobs` are leaves: `logits_gradient` joins their gradients.
    tokens = rows.with_vocabulary(
        log_probs.gather(1, rows.token_ids[:, None]).squeeze(1).requires_grad_(),
        log_probs.requires_grad_(),
        None if teacher_logits is None else teacher_logits.log_softmax(dim=1),
    )
    result = learner.objective.loss(tokens)
    total = torch.stack([(term * tokens.weights).sum() for term in result.terms.values()]).sum()
    torch.autograd.backward(total / denominator)
    probs = log_probs.detach().exp()
    assert tokens.by_student is not None
    logged = {
        # Of every method: the student's entropy, and its NLL of the text that the teacher wrote.
        "entropy": -torch.linalg.vecdot(probs, log_probs.detach()),
        "nll": torch.where(tokens.by_student, 0.0, -tokens.logprobs),
        **{f"{name}_loss": term for name, term in result.terms.items()},
        **result.metrics,
    }
    for name, value in logged.items():
        added = (value.detach() * tokens.weights).sum()
        sums[name] = sums[name] + added if name in sums else added
    del total, result, logged  # the graph holds what comes next uses up
    return logits_gradient(probs, rows.token_ids, log_probs.grad, tokens.logprobs.grad, learner.temperature)


def _teacher_hidden(learner: Learner, batch: Batch) -> Tensor | None:
    if Need.TEACHER_DISTRIBUTION not in learner.objective.needs or not batch.needs_teacher:
        return None
    assert learner.teacher is not None, f"{type(learner.objective).__name__} needs a teacher"
    with torch.no_grad():
        hidden = batch.flatten(hidden_states(learner.teacher, batch.packed))
    require_finite(learner.teacher, hidden, "hidden states")
    return hidden


def _sequence_log_ratio(learner: Learner, batch: Batch, hidden: Tensor) -> Tensor | None:
    """Mean log-ratio to the policy that wrote it of each token's sequence [N], which no chunk sees as a whole."""
    if Need.SEQUENCE_LOG_RATIO not in learner.objective.needs:
        return None
    behavior = batch.signal("behavior_logprobs")
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


def drop_gradients(learner: Learner) -> None:
    for _, optimizer in learner.optimizers():
        optimizer.adam.zero_grad(set_to_none=True)
