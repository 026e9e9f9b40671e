"""A model with what makes kernels differ (7 heads for one of keys, a vocabulary of no round size), and its episodes."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import Signals
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.signals import logprobs
from dgpo_cli.training.step import optimizer_step

CPU = torch.device("cpu")
VOCABULARY = 2_000
CHUNK = 200  # tokens whose distributions exist at once: several chunks
_LENGTHS = (300, 17, 900, 64, 64)


class Words:
    """A codec of nothing but ids."""

    vocabulary_size, eos_ids, pad_id = VOCABULARY, frozenset[int](), 0

    def token_bytes(self, token: int) -> bytes:
        return b"a "


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY + 48,
        hidden_size=448,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=7,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval().to(dtype)


def sequences() -> list[torch.Tensor]:
    """Token ids [L] of five sequences."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in _LENGTHS]


def samples() -> list[Sample]:
    """The second half of each was written; advantages and values are drawn."""
    made = []
    for ids in sequences():
        written = torch.zeros(len(ids), dtype=torch.bool)
        written[len(ids) // 2 :] = True
        generator = torch.Generator().manual_seed(len(ids))
        drawn = [torch.randn(len(ids), generator=generator) * written for _ in range(3)]
        signals = Signals(advantages=drawn[0], returns=drawn[1], old_values=drawn[2])
        made.append(Sample(ids, written, by_student=True, signals=signals))
    return made


def learner(device: torch.device, method: str, variant: str = "plain") -> Learner:
    """Of a method with its teacher where it has one; `variant`: plain, checkpointed, shared critic, 8-bit adam."""
    options = {"kl_form": "full-loss"} if method == "dgpo" else {}
    student = model().to(device)
    settings = OptimizerSettings(1e-4, kind="adamw-8bit" if variant == "8-bit adam" else "adamw")
    critic: Critic | SharedCritic | None = None
    if method == "dgpo":
        critic = SharedCritic(student, seed=1) if variant == "shared critic" else Critic(copy.deepcopy(student), seed=1)
    if variant == "checkpointed":
        enable_gradient_checkpointing(student)
    return Learner(
        registry.create(method, options),
        Words(),  # type: ignore[arg-type]
        student,
        Optimizer(student, settings, 9),
        teacher=None if method == "grpo" else model(1).to(device),
        reference=model(1).to(device) if method == "grpo" else None,
        critic=critic,
        value_optimizer=None if critic is None else Optimizer(critic, settings, 9),
        chunk_tokens=CHUNK,
    )


def step(device: torch.device, method: str, variant: str = "plain") -> dict[str, float]:
    """Metrics of one update; the log-probabilities of the policy that wrote are the student's own."""
    made, found = learner(device, method, variant), samples()
    own = logprobs(made, made.student, found)
    reference = [None] * len(own) if made.reference is None else logprobs(made, made.reference, found)
    told = [
        replace(s.signals, behavior_logprobs=row, reference_logprobs=other)
        for s, row, other in zip(found, own, reference, strict=True)
    ]
    return optimizer_step(
        made, [replace(s, signals=t, by_student=method != "kd") for s, t in zip(found, told, strict=True)]
    )
