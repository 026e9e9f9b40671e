"""The interface of a training objective.

An objective maps flat tensors over the N trained tokens of a micro-batch to named per-token loss terms. It never sees
padding, masks, prompts, passages, batch shape, accumulation, ranks or devices: the trainer weights, sums and divides.

Shapes: L tokens of one trajectory, N trained tokens of a micro-batch, n of those in one vocabulary chunk, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo_cli.core.types import Score
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Need(Enum):
    """Signals that the trainer computes, without gradient, before the loss."""

    TEACHER_DISTRIBUTION = auto()  # over the vocabulary, at every trained token with kl_weight > 0
    TEACHER_LOGPROBS = auto()  # of the written token only
    REFERENCE_LOGPROBS = auto()  # under the policy as it was when training began
    REWARD = auto()
    VALUES = auto()
    SEQUENCE_LOG_RATIO = auto()  # mean over a sequence's written tokens of log p - log p_old, before the step's update


@dataclass(slots=True)
class ScoredEpisode:
    """One scored rollout before credit assignment; float32 tensors [L], zero where nothing was written."""

    group: str  # episodes of one question share it
    score: Score
    written: Tensor  # [L] bool
    behavior_logprobs: Tensor  # [L] of the policy that wrote the tokens
    teacher_logprobs: Tensor | None = None  # [L]
    reference_logprobs: Tensor | None = None  # [L]
    values: Tensor | None = None  # [L] critic's value before token t is written


@dataclass(slots=True)
class Credit:
    """What credit assignment adds to one episode. Not yet whitened: the step does that over all ranks."""

    advantages: Tensor  # [L]
    returns: Tensor | None = None  # [L] targets of the critic
    rewards: Tensor | None = None  # [L] from which the advantages were computed; None where an episode has one reward
    kl_weight: float = 0.0  # weight of a full-distribution KL loss at every written token of the episode
    weight: float = 1.0  # of every written token; 0 leaves the episode out
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Signals:
    """Signals of each token that enter the loss without gradient, in float32: [L] of a sequence, [n] of a batch.

    None where the objective does not need it, or where it was not computed: the teacher skipped the sequence.
    """

    behavior_logprobs: Tensor | None = None  # of the student that wrote the token, recomputed by the trainer
    sampling_logprobs: Tensor | None = None  # of the distribution that the engine drew the token from
    teacher_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    advantages: Tensor | None = None  # whitened
    returns: Tensor | None = None
    old_values: Tensor | None = None


SIGNALS = tuple(field.name for field in fields(Signals))


@dataclass(slots=True, kw_only=True)
class TrainedTokens(Signals):
    """n trained tokens, without the distributions over the vocabulary."""

    token_ids: Tensor  # [n]
    weights: Tensor  # [n]
    sequence_index: Tensor  # [n] which sequence of the micro-batch
    by_student: Tensor | None = None  # [n] bool: never put a likelihood term there
    kl_weight: Tensor | None = None  # [n]
    sequence_log_ratio: Tensor | None = None  # [n] of the token's sequence, without gradient
    values: Tensor | None = None  # [n] with gradient

    def rows(self, part: slice) -> TrainedTokens:
        """A slice of the tokens; gradients flow back to the whole."""
        named: dict[str, Any] = {name: v if v is None else v[part] for name, v in self._named().items()}
        return TrainedTokens(**named)

    def with_vocabulary(self, logprobs: Tensor, log_probs: Tensor, teacher_log_probs: Tensor | None) -> TokenBatch:
        return TokenBatch(logprobs=logprobs, log_probs=log_probs, teacher_log_probs=teacher_log_probs, **self._named())

    def _named(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(TrainedTokens)}


@dataclass(slots=True, kw_only=True)
class TokenBatch(TrainedTokens):
    """The argument of a loss. Optional fields are present when the objective needs them."""

    logprobs: Tensor  # [n] student log p(token), with gradient
    log_probs: Tensor  # [n, V] student, with gradient apart from that of `logprobs`, float32; -inf where excluded
    teacher_log_probs: Tensor | None = None  # [n, V] float32; None in RL where every kl_weight is 0


@dataclass(slots=True)
class TokenLoss:
    """`terms` are trained on ("policy" by the student, "value" by the critic); `metrics` are only logged. All [n]."""

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """Subclass, set `Config` and `needs`, implement `loss`; an RL objective also implements `credit`.

    `Config` is a frozen dataclass whose defaults are the paper's settings; every field says where its default is from.
    """

    Config: ClassVar[type]
    formulas: ClassVar[str] = ""  # lines "what it is: LaTeX"; docs/methods/README.md lists the symbols
    whitens_advantages: ClassVar[bool] = True  # to mean 0 and variance 1 over the written tokens of a step
    evaluates_first: ClassVar[bool] = False  # `after_eval` is called once before the first step too
    default_samples: ClassVar[int] = 1  # attempts at each question of a step

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def configure(cls, options: dict[str, object]) -> dict[str, object]:
        """The given options plus those that follow from them; they override the defaults of `Config`."""
        return options

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Signals that this objective, as configured, reads."""

    @property
    def credits(self) -> bool:
        """Whether the student's sequences get advantages from `credit`."""
        return Need.REWARD in self.needs

    @property
    def on_policy(self) -> bool:
        """Whether the student may be asked to write in the search loop; the rest of the run needs an index then."""
        return self.credits

    @property
    def student_fraction(self) -> float:
        """Share of training sequences that the student writes itself: 0 = teacher data only, 1 = all of them."""
        return 1.0 if self.on_policy else 0.0

    @property
    def fresh_fraction(self) -> float:
        """Share of the student-written sequences that is newly generated; the rest is replayed."""
        return 1.0

    @property
    def replay_capacity(self) -> int:
        """How many student-written sequences are kept to be trained on again."""
        return 0

    @property
    def teacher_writes(self) -> bool:
        """Whether the teacher generates its share at each step, in place of the stored trajectories."""
        return False

    @property
    def sampled_from_teacher(self) -> float:
        """Share of the teacher in the mixture from which the student's tokens are drawn."""
        return 0.0

    @property
    def replaces_uninformative(self) -> bool:
        """Whether groups whose attempts all have the same reward are replaced by attempts at further questions."""
        return False

    def denominator(self, weight: float, sequences: int) -> float:
        """Divisor of an update's summed loss; by default the total token weight."""
        return weight

    def kl_applies(self, score: Score) -> bool:
        """Whether the KL applies to an episode with this score; False skips the teacher's forward pass."""
        return True

    def credit(self, episodes: Sequence[ScoredEpisode]) -> list[Credit]:
        """Rewards to per-token advantages for the episodes of one step, in order. Called once, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} trains without rewards")

    @abstractmethod
    def loss(self, tokens: TokenBatch) -> TokenLoss:
        """Named loss terms and diagnostics, each [n]. Called once per chunk."""

    def after_step(self, metrics: Mapping[str, float], progress: float) -> None:  # noqa: B027
        """Move schedules, from the step's weighted mean metrics; `progress` runs from 0 to 1."""

    def after_eval(self, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """Move schedules, from validation metrics (`nll` in nats per token)."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        if state:
            raise ConfigError(
                f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}",
                hint="resume with the method that wrote the checkpoint",
            )
