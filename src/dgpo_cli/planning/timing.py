"""Time of a step by phase, from sizes and a card's data sheet. A rough guide: nothing here was measured on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.models.shapes import Shape

# Episodes of the reference length: prompt, three searches, and a generated turn before, between and after them.
PROMPT_TOKENS, SEARCHES, TURN_TOKENS = 300, 3, 100
PASSAGE_TOKENS = 170  # of a hundred words and a title
CORE_FLOPS = 60e9  # of a CPU, in float32; kd of SmolLM2-135M reached 89e9 a core of an AVX512 machine
ARITHMETIC, MEMORY = 0.35, 0.6  # assumed shares of a data sheet's figure that are reached
LAYER_SECONDS = 0.05e-3  # assumed: one layer of one decoding step costs at least this in a captured graph
EAGER_LAYER_SECONDS = 0.8e-3  # assumed: and this where kernels are launched one by one, as for an 8-bit model
WRONG = 0.6  # assumed share of episodes that the teacher reads; the paper's students have 0.4 EM in training

_ASSUMED = (
    f"episodes of {PROMPT_TOKENS} prompt tokens, {SEARCHES} searches and {SEARCHES + 1} turns of {TURN_TOKENS} tokens",
    f"passages of {PASSAGE_TOKENS} tokens, an observation no longer than the setting allows",
    f"a decoding step takes at least {1e3 * LAYER_SECONDS:.2f} ms a layer, in 8 bit {1e3 * EAGER_LAYER_SECONDS:.1f} ms",
    f"the teacher of rl reads {WRONG:.0%} of the episodes; search, evaluation and saving are not counted",
)
_ASSUMED_OF_CARDS = (
    f"{ARITHMETIC:.0%} of the card's bf16 arithmetic and {MEMORY:.0%} of its memory bandwidth are reached",
    "memory is that of the longest sequences",
    "CUDA's context takes 1 GB and the allocator 5 % on top",
    "no figure was measured on a GPU",
)
_ASSUMED_OF_CPUS = (
    f"a core reaches {CORE_FLOPS / 1e9:.0f} GFLOP/s in float32, and {MEMORY:.0%} of the memory's bandwidth are reached",
    "memory is that of the longest sequences; where a model only writes, of episodes of the length above",
)


@dataclass(frozen=True, slots=True)
class Card:
    gib: float
    flops: float  # dense bf16, per second
    bandwidth: float  # bytes per second
    accelerated: bool = True  # False: a CPU

    @property
    def reached(self) -> float:
        """Arithmetic per second of a training step: a share of a data sheet's, and all of what a core is counted as."""
        return self.flops * (ARITHMETIC if self.accelerated else 1.0)

    @property
    def device(self) -> str:
        return "cuda" if self.accelerated else "cpu"


def assumptions(card: Card) -> tuple[str, ...]:
    """What the figures of a plan rest on."""
    return _ASSUMED + (_ASSUMED_OF_CARDS if card.accelerated else _ASSUMED_OF_CPUS)


@dataclass(frozen=True, slots=True)
class Speed:
    """Parameters of the time of a step. `writer` generates, and trains if it is a student."""

    writer: Shape
    reader: Shape | None
    rollout: RolloutSettings
    episodes: int
    card: Card
    eight_bit: bool = False
    critic: bool = False
    shared_critic: bool = False  # a head on the writer's hidden states, or none
    reference: bool = False
    checkpointing: bool = False


def episode_tokens(rollout: RolloutSettings, prompt: int = PROMPT_TOKENS) -> tuple[int, int]:
    """(all, written) tokens of an episode of the reference length."""
    searches = min(SEARCHES, rollout.max_turns)
    written = (searches + 1) * min(TURN_TOKENS, rollout.max_new_tokens)
    read = prompt + searches * min(rollout.max_observation_tokens, rollout.top_k * PASSAGE_TOKENS)
    return min(rollout.max_tokens, read + written), written


def seconds_by_phase(speed: Speed) -> dict[str, float]:
    """Seconds of one step: `rollout`, `signals` (log-probabilities and values) and `update`."""
    total, _ = episode_tokens(speed.rollout)
    tokens = speed.episodes * total
    arithmetic = speed.card.reached
    forward = 2 * tokens * speed.writer.parameters / arithmetic
    models = 2 if speed.critic and not speed.shared_critic else 1
    signals = forward * (models + speed.reference) if speed.critic else 0.0
    if speed.reader is not None:
        share = WRONG if speed.critic else 1.0
        signals += share * 2 * tokens * speed.reader.parameters / arithmetic
    passes = 4 if speed.checkpointing else 3  # forward, backward twice as much, and forward again
    return {"rollout": _rollout(speed), "signals": signals, "update": models * passes * forward}


def _rollout(speed: Speed) -> float:
    """Prefills by arithmetic, decoding by the bytes that each step reads, or by the launches where those are more."""
    total, written = episode_tokens(speed.rollout)
    writer, together = speed.writer, min(speed.rollout.wave, speed.episodes)
    weights = writer.parameters * (1 if speed.eight_bit else 2)
    caches = 2 * writer.layers * writer.kv_width * 2 * together * total / 2  # half of the final length on average
    layer = EAGER_LAYER_SECONDS if speed.eight_bit else LAYER_SECONDS
    step = max((weights + caches) / (MEMORY * speed.card.bandwidth), writer.layers * layer)
    decoding = math.ceil(speed.episodes / together) * written * step
    prefills = 2 * speed.episodes * (total - written) * writer.parameters / speed.card.reached
    return decoding + prefills
