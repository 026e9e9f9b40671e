"""Settings of the commands that train or generate: what a run folder's config.toml holds.

Sources: "paper" is arXiv 2508.20324 and its released scripts, "TAID" the repository whose forward-KL code the authors
used for the cold start, "ours" where neither says anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.device import Precision
from dgpo_cli.engine.registry import EngineName
from dgpo_cli.engine.turnwise.model_server import ServerAccess
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.rerank import RerankConfig
from dgpo_cli.training.collapse import CollapseSettings, OnCollapse
from dgpo_cli.training.optimizer_settings import OptimizerKind, Schedule

GOLD = "gold"  # the teacher that knows the supporting passages
BehaviorKind = Literal["trainer", "engine"]
CriticKind = Literal["own", "shared"]


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """Shared by distill-data and rl."""

    top_k: int = 3  # paper
    max_turns: int = 4  # paper
    max_new_tokens: int = 500  # paper, per turn
    max_observation_tokens: int = 500  # paper
    max_prompt_tokens: int = 2048  # paper
    max_tokens: int = 4096  # paper, whole episode
    temperature: float = 1.0  # paper
    wave: int = 64  # ours, episodes that run together
    overlap_steps: int = 0  # ours, tokens that others write while a search is answered; pays off beside a GPU
    stop_repeats: bool = False  # ours, ends an episode that repeats itself; distill-data sets it

    def __post_init__(self) -> None:
        RolloutSettings(**asdict(self))  # refuses values that no episode can have


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """What `-o rollout.` sets in the commands that ask a trained model; as it was trained where nothing is given."""

    top_k: int | None = None
    max_turns: int | None = None
    max_new_tokens: int | None = None
    max_observation_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class AskSettings:
    """What `-o` sets in the commands that ask a trained model."""

    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: EpisodeLimits = field(default_factory=EpisodeLimits)
    precision: Precision = "auto"  # ours, bf16 on CPUs where that is faster; float32 is the same on every CPU


@dataclass(frozen=True, slots=True)
class DistillDataSettings:
    teacher: str
    index: str
    questions: str  # where they come from, for the record
    keep: Literal["correct", "searched", "all"] = "correct"  # paper
    always_search: bool = False  # ours; see arXiv 2604.04651
    demonstrations: str | None = None  # file that says how to answer, instead of a teacher
    samples: int = 1  # ours
    limit: int | None = None
    seed: int = 0
    teacher_8bit: bool = False
    precision: Precision = "auto"  # ours, bf16 on CPUs where that is faster; float32 is the same on every CPU
    device: str = "auto"
    teacher_url: str | None = None  # of a server that has `teacher`
    tokenizer: str | None = None  # with teacher_url: the model whose tokenizer and agent text are used
    engine: EngineName = "transformers"  # that runs a teacher which is loaded here
    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    server: ServerAccess = field(default_factory=ServerAccess)  # how teacher_url is asked

    def __post_init__(self) -> None:
        _positive(self, "samples", "limit")
        if self.written:
            if self.tokenizer is None:
                raise ConfigError("demonstrations need the tokens of a model", hint="give --tokenizer STUDENT")
            if self.samples != 1:
                raise ConfigError(
                    f"samples = {self.samples}: there is one demonstration of a question", hint="leave --samples out"
                )
        elif (self.teacher_url is None) != (self.tokenizer is None):
            raise ConfigError("teacher_url and tokenizer belong together", hint="give --teacher-url and --tokenizer")
        if (self.teacher_url is not None or self.written) and (self.teacher_8bit or self.engine != "transformers"):
            raise ConfigError(
                "--teacher-8bit and --engine are for a teacher that is loaded here", hint="leave them out"
            )
        if self.engine == "vllm" and self.teacher_8bit:
            raise ConfigError("vLLM does not load a teacher in 8 bit here", hint="leave out --teacher-8bit")

    @property
    def written(self) -> bool:
        """Whether a script answers and no model."""
        return self.demonstrations is not None or self.teacher == GOLD


@dataclass(frozen=True, slots=True)
class KDSettings:
    student: str
    teacher: str
    trajectories: str
    method: str = "kd"
    objective: dict[str, object] = field(default_factory=dict)
    lr: float = 1e-4  # TAID
    epochs: int = 5  # paper
    steps: int | None = None  # overrides epochs
    batch_size: int = 64  # TAID
    schedule: Schedule = "cosine"  # TAID
    warmup_steps: int = 0  # TAID
    beta2: float = 0.999  # TAID, of AdamW
    optimizer: OptimizerKind = "adamw"  # TAID; adamw-8bit keeps its moments in 8 bit
    validation_share: float = 0.05  # ours
    index: str | None = None  # for what the student searches: methods that let it write, and eval_questions
    eval_questions: str | None = None  # the best weights by EM on these instead of likelihood (ours)
    eval_limit: int = 256  # ours
    eval_every: int | None = None  # steps; once per epoch by default (ours)
    micro_batch_tokens: int = 16_384  # ours
    chunk_tokens: int = 256  # ours, tokens whose distributions exist at once
    gradient_checkpointing: bool = False
    fit: bool = False  # micro_batch_tokens (and rollout.wave in rl) as large as the memory allows
    fit_gib: float | None = None  # the memory that `fit` may use; what is free by default
    teacher_8bit: bool = False
    precision: Precision = "auto"  # ours, bf16 on CPUs where that is faster; float32 is the same on every CPU
    on_collapse: OnCollapse = "warn"  # ours
    seconds: float | None = None
    seed: int = 0
    device: str = "auto"
    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)  # of the evaluation
    collapse: CollapseSettings = field(default_factory=CollapseSettings)

    def __post_init__(self) -> None:
        _positive(self, "lr", "batch_size", "epochs", "steps", "seconds", "eval_limit", "eval_every", "fit_gib")
        _positive(self, "micro_batch_tokens", "chunk_tokens")
        _not_negative(self, "warmup_steps")
        _share(self, "beta2")
        if self.eval_questions is not None and self.index is None:
            raise ConfigError("validation by EM needs an index", hint="give --index beside --eval-data")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share = {self.validation_share}", hint="give a share from 0 up to below 1")


@dataclass(frozen=True, slots=True)
class RLSettings:
    student: str
    teacher: str | None
    index: str
    questions: str
    bench_dir: str | None = None
    validation: str | None = None  # question file of the periodic evaluation; held out of `questions` by default
    method: str = "dgpo"
    objective: dict[str, object] = field(default_factory=dict)
    reward: dict[str, float] = field(default_factory=dict)  # weights by part, over em = 1 (paper)
    steps: int = 1000  # paper
    batch_size: int = 512  # paper, questions per step
    samples: int | None = None  # attempts at each question; the method's by default (paper 1, grpo 5 as in Search-R1)
    mini_batches: int = 2  # paper, 256 of 512
    lr: float = 1e-6  # paper
    warmup_steps: int = 285  # paper, 0.285 of 1000
    critic_lr: float = 1e-5  # paper
    critic_warmup_lr_steps: int = 15  # paper, 0.015 of 1000
    critic_warmup_steps: int = 0  # paper
    beta2: float = 0.999  # paper, of AdamW
    optimizer: OptimizerKind = "adamw"  # paper; adamw-8bit keeps its moments in 8 bit
    behavior_logprobs: BehaviorKind = "trainer"  # paper, computed anew; those of the engine spare a forward pass
    critic: CriticKind = "own"  # paper; shared is a head on the student's hidden states
    eval_every: int = 200  # paper
    eval_questions: int = 256  # ours
    save_every: int = 50  # paper
    keep_episodes: int = 4  # ours, of each step, to be read later; at most 1,000 of a run
    micro_batch_tokens: int = 16_384  # ours
    chunk_tokens: int = 256  # ours, tokens whose distributions exist at once
    gradient_checkpointing: bool = False
    fit: bool = False  # micro_batch_tokens (and rollout.wave in rl) as large as the memory allows
    fit_gib: float | None = None  # the memory that `fit` may use; what is free by default
    teacher_8bit: bool = False
    precision: Precision = "auto"  # ours, bf16 on CPUs where that is faster; float32 is the same on every CPU
    on_collapse: OnCollapse = "warn"  # ours
    seed: int = 0
    device: str = "auto"
    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    collapse: CollapseSettings = field(default_factory=CollapseSettings)

    def __post_init__(self) -> None:
        _positive(self, "lr", "critic_lr", "batch_size", "mini_batches", "steps", "samples", "fit_gib")
        _positive(self, "micro_batch_tokens", "chunk_tokens")
        _not_negative(self, "warmup_steps", "critic_warmup_lr_steps", "critic_warmup_steps")
        _not_negative(self, "eval_every", "eval_questions", "save_every", "keep_episodes")
        _share(self, "beta2")


def deviations(config: Mapping[str, object]) -> list[str]:
    """What a run with these settings does otherwise than the paper's algorithm, for its record and its model's card."""
    known = {
        ("critic", "shared"): "the critic is a head on the student's hidden states, not a model of its own",
        ("optimizer", "adamw-8bit"): "AdamW keeps its moments in 8 bit",
        ("behavior_logprobs", "engine"): "probability ratios are to the rollout engine's log-probabilities",
    }
    return [text for (name, value), text in known.items() if config.get(name) == value]


def _positive(settings: object, *names: str) -> None:
    """Of those that are set. A value that is no number is refused with them: every comparison with it is False."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value} is not positive", hint=f"give {name} a value above 0")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < 0:
            raise ConfigError(f"{name} = {value} is negative", hint=f"give {name} 0 or more")


def _share(settings: object, name: str) -> None:
    value = getattr(settings, name)
    if not 0 <= value < 1:
        raise ConfigError(f"{name} = {value}", hint=f"give {name} a value from 0 up to below 1")
