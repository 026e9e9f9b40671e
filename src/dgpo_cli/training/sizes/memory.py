"""Memory of a training step from sizes alone. docs/plan.md derives every term; nothing here is fitted to a machine.

Symbols: M tokens of a micro-batch, N trained tokens of it, n of a vocabulary chunk, V and H and I and Q the
widths of vocabulary, hidden state, feed-forward layer and queries. All figures are bytes.
"""

from __future__ import annotations

from collections.abc import Collection

from dgpo_cli.engine.in_process import sizes
from dgpo_cli.models.shapes import Shape
from dgpo_cli.training.sizes.job import FLOAT, HALF, Job

CUDA_CONTEXT = 1.0e9  # assumed: context, kernels and workspaces of the libraries
FRAGMENTATION = 0.05  # assumed: share of the rest that PyTorch's caching allocator holds without using it
LIBRARIES = 0.5e9  # measured, without a GPU: PyTorch and transformers, and what small blocks leave in the allocator
SAMPLED_LOGITS = 1 << 23  # turned into tokens at once (engine/sampling.py), four float32 buffers of them
# Logits whose losses are computed at once (training/step.py), on a CPU, in whose caches they stay, and on CUDA, where
# they keep a GPU busy for longer than a launch takes (models/ways.py may give others).
BLOCK_LOGITS = (1 << 20, 1 << 24)
# Float32 buffers of that size that are alive at its highest, counted in the code of the losses (docs/plan.md).
_BUFFERS_CE, _BUFFERS_POLICY, _BUFFERS_KD, _BUFFERS_FULL_KL = 3.0, 3.25, 4.25, 5.25


def by_part(job: Job) -> dict[str, float]:
    """Bytes by part at the highest point of a step. Parts add up to the total; what never coincides counts once."""
    student = job.student
    critic = critic_trained(student) if job.own_critic else job.critic_head
    frozen_head = (
        student.head_parameters if job.own_critic and not student.tied else 0
    )  # the critic's unused output layer
    adapters = job.adapter * (2 if job.own_critic else 1)
    trained = trained_values(job)
    parts: dict[str, float] = {
        "student weights": FLOAT * student.parameters,
        "critic weights": FLOAT * (critic + frozen_head),
        "adapters": FLOAT * adapters,
        "optimizer": moments(job, trained),
        "teacher": reader_bytes(job),
        "reference": FLOAT * student.parameters if job.reference else 0,
        "KV cache": kv_cache(job) if job.accelerated else 0,
        "copy to write with": writing_copy(job),
        "captured graphs": captured(job),
    }
    parts |= _work(job, FLOAT * trained)
    if job.accelerated:
        parts["allocator overhead"] = CUDA_CONTEXT + FRAGMENTATION * sum(parts.values())
    return {name: value for name, value in parts.items() if value}


def trained_values(job: Job) -> int:
    """Trained values of student and critic: all, all but embeddings and output layers, or the adapters."""
    student = job.student
    head = job.critic_head
    bodies = 2 if job.own_critic else 1
    if job.adapter:
        return bodies * job.adapter + head
    if job.frozen_embeddings:
        return bodies * student.body + head
    return student.parameters + (critic_trained(student) if job.own_critic else head)


def adapter_values(student: Shape, rank: int, maps: Collection[str]) -> int:
    """Two matrices for each linear map of every layer, [rank, in] and [out, rank]."""
    widths = {
        "q_proj": student.hidden + student.query_width,
        "k_proj": student.hidden + student.kv_width,
        "v_proj": student.hidden + student.kv_width,
        "o_proj": student.query_width + student.hidden,
        "gate_proj": student.hidden + student.intermediate,
        "up_proj": student.hidden + student.intermediate,
        "down_proj": student.intermediate + student.hidden,
    }
    return student.layers * rank * sum(widths.get(name, 0) for name in maps)


def critic_trained(student: Shape) -> int:
    """Parameters of the critic that train: the body, the embedding, and a head of width 1."""
    return student.body + student.head_parameters + student.hidden + 1


def moments(job: Job, trained: int) -> float:
    """Two for every trained value: float32, or a byte and a 256th of a float32 scale. Embeddings stay in float32, and
    so do norms and biases, which are counted as if they did not.
    """
    if not job.adam_8bit:
        return 2 * FLOAT * trained
    wide = 0 if job.frozen else job.student.head_parameters * (2 if job.own_critic else 1)
    return 2 * FLOAT * wide + 2 * (1 + FLOAT / 256) * (trained - wide)


def adam_temporary(job: Job) -> float:
    """AdamW's kernel works in place on CUDA; on a CPU it goes over tensors one by one."""
    return 0.0 if job.accelerated or job.frozen else FLOAT * job.student.head_parameters


def reader_bytes(job: Job) -> float:
    """In 8 bit only the linear maps of the layers are; embedding, output layer and norms are as they are elsewhere."""
    reader = job.reader
    if reader is None:
        return 0
    if not job.reader_8bit:
        return job.reader_compute * reader.parameters
    linear = reader.layers * reader.layer_linear
    return linear + job.reader_compute * (reader.parameters - linear)


def kv_cache(job: Job) -> float:
    """Keys and values of all episodes of a wave, each at its longest; of two models that write one after the other a
    CPU holds those of one at a time.
    """
    caches = [
        sizes.cache_bytes(
            [job.capacity] * job.slots,
            layers=shape.layers,
            kv_width=shape.kv_width,
            itemsize=itemsize,
            slots=job.slots,
            capacity=job.capacity,
            accelerated=job.accelerated,
        )
        for shape, itemsize in job.writers
    ]
    return sum(caches) if job.blended or job.accelerated else max(caches)


def writing_copy(job: Job) -> float:
    """The copy that generates: rounded from float32 masters to 16 bit, or with an adapter merged.

    Validation has an engine of its own beside one that blends.
    """
    copies = 2 if job.blended else 1
    return copies * job.compute * job.student.parameters if job.slots and (job.compute == HALF or job.adapter) else 0.0


def captured(job: Job) -> float:
    """Logits of one token of all slots, in 16 and 32 bit, and the draw: CUDA graphs keep what they work on."""
    if not (job.accelerated and job.slots):
        return 0.0
    logits = job.slots * job.student.vocabulary
    return (HALF + FLOAT) * logits + 4 * FLOAT * min(logits, SAMPLED_LOGITS)


def kept_per_token(shape: Shape, *, half: bool) -> float:
    """Bytes that one layer keeps for its backward pass, per token.

    Two norms (input, normalized, scaled), query / key / value / output of attention with keys and values repeated for
    every head, and gate, activated gate, up and product of the feed-forward layer. Under autocast the residual stream
    and the norms are float32, the inputs of linear maps bf16.
    """
    hidden, query, inner = shape.hidden, shape.query_width, shape.intermediate
    if half:
        return 2 * (2 * FLOAT + HALF) * hidden + HALF * (4 * query + 4 * inner)
    return FLOAT * (6 * hidden + 4 * query + 4 * inner)


def activations(job: Job) -> float:
    """Activations of student and critic, which are differentiated together."""
    shape = job.student
    layer = kept_per_token(shape, half=job.compute == HALF)
    per_token = shape.layers * (FLOAT * shape.hidden if job.checkpointing else layer)
    models = 2 if job.own_critic else 1
    rounded = 0.0 if job.checkpointing else rounded_weights(job)
    edges = 4 * FLOAT * shape.hidden  # embedding, last norm
    return models * (job.tokens * (per_token + edges) + rounded)


def rounded_weights(job: Job) -> float:
    """The student's layers in 16 bit, kept during a pass through them."""
    return HALF * job.student.layers * job.student.layer_linear if job.compute == HALF else 0.0


def _work(job: Job, gradients: float) -> dict[str, float]:
    """The most expensive moment of a step.

    Losses, a teacher's distribution and a layer's way back come on top of the activations and gradients. The optimizer
    and an embedding's gradient come on top of the gradients alone. Episodes are written and scored when nothing else is
    there; only on an accelerator their cache is kept for the whole step, and counted elsewhere.
    """
    shape = job.student
    flat = (4 if job.own_critic else 3) * FLOAT * job.trained * shape.hidden  # hidden states, their copy and gradients
    if job.distribution and job.reader is not None:
        flat += job.reader_compute * job.trained * job.reader.hidden
    layer = job.tokens * (
        kept_per_token(shape, half=job.compute == HALF) * (2 if job.checkpointing else 0)
        + job.compute * 3 * shape.intermediate
    )
    back = {"gradients": gradients, "activations": activations(job) + flat}
    writing = {"prefill": prefill(job)}
    if not job.accelerated:
        writing |= {"KV cache": kv_cache(job), "logits": drawn(job)}
    moments_of_work: list[dict[str, float]] = [
        back | {"vocabulary chunk": vocabulary_chunk(job)},
        back | {"teacher's pass": reader_pass(job) if job.distribution else 0.0},
        back | {"layer in hand": layer},
        {"gradients": gradients, "optimizer step": adam_temporary(job)},
        # One in addition to the one that it is added to.
        {"gradients": gradients, "embedding gradient": 0.0 if job.frozen else 2.0 * FLOAT * shape.head_parameters},
        {"teacher's pass": 0.0 if job.distribution else reader_pass(job) + logprob_chunk(job)},
        writing,
    ]
    return max(moments_of_work, key=lambda parts: sum(parts.values()))


def vocabulary_chunk(job: Job) -> float:
    """Logits, and what the loss makes of a block of them; in 16 bit also the output layer, or later its gradient."""
    tokens, vocabulary = min(job.chunk, job.trained), job.student.vocabulary
    logits = FLOAT * tokens * vocabulary
    block = FLOAT * vocabulary * min(tokens, max(1, BLOCK_LOGITS[job.accelerated] // vocabulary))
    if job.rl:
        buffers = _BUFFERS_FULL_KL if job.distribution else _BUFFERS_POLICY
    else:
        buffers = _BUFFERS_KD if job.distribution else _BUFFERS_CE
    held = (2 if job.distribution else 1) * logits
    losses = held + buffers * block
    if job.compute == FLOAT:
        return losses
    half = HALF * job.student.head_parameters
    if job.accelerated:  # where the teacher's are freed before the way back
        held = logits
    return max(losses + half, held + 0.5 * logits + 2 * half)  # a half: the gradient in 16 bit


def logprob_chunk(job: Job) -> float:
    rounded = rounded_weights(job) + (HALF * job.student.head_parameters if job.compute == HALF else 0)
    return 3 * FLOAT * min(job.chunk, job.trained) * job.student.vocabulary + rounded


def reader_pass(job: Job) -> float:
    """A forward pass without gradient: residual stream, a norm, and the feed-forward layer of one layer at a time."""
    if job.reader is None:
        return 0.0
    return job.reader_compute * job.tokens * (3 * job.reader.hidden + 3 * job.reader.intermediate)


def prefill(job: Job) -> float:
    """Activations of one layer in a reading pass."""
    if not job.slots:
        return 0.0

    def of(shape: Shape, itemsize: int) -> float:
        most = sizes.pass_tokens(shape.hidden, shape.intermediate, itemsize, accelerated=job.accelerated)
        tokens = min(max(most, job.capacity), job.slots * job.capacity)
        return itemsize * tokens * (3 * shape.hidden + 3 * shape.intermediate)

    return max(of(*writer) for writer in job.writers)


def drawn(job: Job) -> float:
    """The logits of a token of every slot, and what becomes of them."""
    return (6.0 if job.blended else 3.0) * FLOAT * job.slots * job.student.vocabulary


def in_process(job: Job) -> dict[str, float]:
    """`by_part` with what a process takes before it holds a model; on CUDA that is in the allocator's part already."""
    return by_part(job) | ({} if job.accelerated else {"libraries": LIBRARIES})
