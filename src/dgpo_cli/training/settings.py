"""Settings of the commands that train: what a run folder's config.toml holds, with help and the source of each default.

Sources: "paper" is arXiv 2508.20324 and its released scripts, "TAID" the repository whose forward-KL code the authors
used for the cold start, "ours" where neither says anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dgpo_cli.agent.settings import EpisodeLimits, RolloutSettings
from dgpo_cli.core.config import note, require_ranges, setting
from dgpo_cli.core.device import PRECISION, Precision
from dgpo_cli.engine.turnwise.model_server import ModelServerAccess
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.lora_options import LoraOptions
from dgpo_cli.retrieval.rerank import RerankConfig
from dgpo_cli.training.collapse import CollapseSettings, OnCollapse
from dgpo_cli.training.optimizer_settings import OptimizerKind, Schedule

BehaviorKind = Literal["trainer", "engine"]
CriticKind = Literal["own", "shared"]


@dataclass(frozen=True, slots=True)
class AskSettings:
    """Settings under `-o` of the commands that ask a trained model."""

    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: EpisodeLimits = field(default_factory=EpisodeLimits)
    precision: Precision = setting("auto", PRECISION, source="ours")
    server: ModelServerAccess = field(default_factory=ModelServerAccess)  # how --model-url is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Settings that `kd` and `rl` share. A pass is one over the trajectories of kd, or over the questions of rl."""

    student: str = field(metadata=note("where training starts: alias, hub id, folder or run"))
    teacher: str | None = setting(None, "alias, hub id, folder or run; needed by methods that compare with one")
    index: str | None = setting(None, "index folder or server address, for what the student searches")
    method: str = field(metadata=note("`--list` shows all"))
    objective: dict[str, object] = field(default_factory=dict, metadata=note("settings of the method"))
    steps: int | None = setting(None, "steps of training; none for `epochs` passes", range="positive")
    epochs: int = field(metadata=note("passes over the data, where `steps` is none", range="positive"))
    batch_size: int = field(metadata=note("trajectories (kd) or questions (rl) per step", range="positive"))
    lr: float = field(metadata=note("learning rate of the student", range="positive"))
    warmup_steps: int = field(metadata=note("steps in which the learning rate rises", range="not negative"))
    beta2: float = field(metadata=note("of AdamW", range="share"))
    optimizer: OptimizerKind = field(metadata=note("adamw-8bit keeps its moments in 8 bit"))
    eval_data: str | None = setting(None, "question file whose EM decides which weights are the best")
    eval_limit: int = setting(256, "validation questions at most", source="ours", range="not negative")
    eval_every: int | None = setting(
        None, "steps between evaluations; none for a pass, 0 at the end only", source="ours", range="not negative"
    )
    save_every: int | None = setting(
        None,
        "steps between saved states; none for a pass, 0 at the end only; one follows every evaluation too",
        source="ours",
        range="not negative",
    )
    micro_batch_tokens: int = setting(
        16_384, "tokens that go through the models at once", source="ours", range="positive"
    )
    chunk_tokens: int = setting(256, "tokens whose distributions exist at once", source="ours", range="positive")
    gradient_checkpointing: bool = setting(False, "compute activations again instead of keeping them")
    lora: LoraOptions = field(default_factory=LoraOptions)
    freeze_embeddings: bool = setting(False, "train neither the embedding of tokens nor the output layer")
    fit: bool = setting(False, "micro_batch_tokens (and rollout.wave in rl) as large as the memory allows")
    fit_gib: float | None = setting(None, "memory that `fit` may use; what is free by default", range="positive")
    teacher_8bit: bool = setting(False, "load the teacher in 8 bit")
    precision: Precision = setting("auto", PRECISION, source="ours")
    on_collapse: OnCollapse = setting("warn", "warn, stop, or rollback to the best weights", source="ours")
    seed: int = setting(0, "of every draw")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    collapse: CollapseSettings = field(default_factory=CollapseSettings)

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.lora.rank is not None and self.freeze_embeddings:
            raise ConfigError(
                "freeze_embeddings together with lora.rank, which freezes the whole model already",
                hint="leave out one of them",
            )

    def counts(self, a_pass: int) -> tuple[int, int, int]:
        """`steps`, `eval_every` and `save_every` where a pass over the data has `a_pass` steps."""
        return (
            self.epochs * a_pass if self.steps is None else self.steps,
            a_pass if self.eval_every is None else self.eval_every,
            a_pass if self.save_every is None else self.save_every,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KDSettings(TrainSettings):
    """Settings of `dgpo kd`."""

    trajectories: str = field(metadata=note("trajectory file or distill-data run"))
    method: str = "kd"
    epochs: int = setting(5, source="paper")
    batch_size: int = setting(64, "trajectories per step", source="TAID")
    lr: float = setting(1e-4, source="TAID")
    schedule: Schedule = setting("cosine", "of the learning rate", source="TAID")
    warmup_steps: int = setting(0, source="TAID")
    beta2: float = setting(0.999, source="TAID")
    optimizer: OptimizerKind = setting("adamw", source="TAID")
    validation_share: float = setting(
        0.05,
        "of the trajectories, by question: their likelihood decides without eval_data",
        source="ours",
        range="share",
    )
    seconds: float | None = setting(None, "end after so much training time", range="positive")

    def __post_init__(self) -> None:
        TrainSettings.__post_init__(self)  # `super()` does not know the class that slots make
        if self.eval_data is not None and self.index is None:
            raise ConfigError("validation by EM needs an index", hint="give --index with --eval-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSettings(TrainSettings):
    """Settings of `dgpo rl`."""

    questions: str = field(metadata=note("QA sets or question files, comma-separated"))
    bench_dir: str | None = setting(None, "folder of the QA sets instead of the hub")
    method: str = "dgpo"
    reward: dict[str, float] = field(
        default_factory=dict, metadata=note("weights by part, over em = 1", source="paper")
    )
    steps: int | None = setting(1000, source="paper")
    epochs: int = setting(1, source="ours")
    batch_size: int = setting(512, "questions per step", source="paper")
    samples: int | None = setting(
        None, "attempts at each question; the method's by default (paper 1, grpo 5 as in Search-R1)", range="positive"
    )
    mini_batches: int = setting(
        2, "updates per step, of 256 questions each by default", source="paper", range="positive"
    )
    lr: float = setting(1e-6, source="paper")
    warmup_steps: int = setting(285, "steps in which the learning rate rises, 0.285 of 1000", source="paper")
    beta2: float = setting(0.999, source="paper")
    optimizer: OptimizerKind = setting("adamw", source="paper")
    critic_lr: float = setting(1e-5, "learning rate of the critic", source="paper", range="positive")
    critic_warmup_lr_steps: int = setting(
        15, "steps in which the critic's learning rate rises, 0.015 of 1000", source="paper", range="not negative"
    )
    critic_warmup_steps: int = setting(0, "steps that move the critic alone", source="paper", range="not negative")
    behavior_logprobs: BehaviorKind = setting(
        "trainer", 'recomputed; "engine" reuses those of sampling and saves a forward pass', source="paper"
    )
    critic: CriticKind = setting("own", "shared is a head on the student's hidden states", source="paper")
    eval_data: str | None = setting(
        None, "question file of the periodic evaluation; held out of `questions` by default"
    )
    eval_every: int | None = setting(200, source="paper")
    save_every: int | None = setting(50, source="paper")
    keep_episodes: int = setting(
        4, "of each step, to be read later; at most 1,000 of a run", source="ours", range="not negative"
    )

    def __post_init__(self) -> None:
        TrainSettings.__post_init__(self)
        if self.index is None:
            raise ConfigError("rl searches, and there is no index", hint="give --index")
        if self.rollout.temperature == 0:
            raise ConfigError(
                "rollout.temperature = 0 writes one answer to a question every time, and rewards compare several",
                hint="give it a value above 0; the paper's is 1",
            )
        for name, weight in self.reward.items():
            if not math.isfinite(weight):
                raise ConfigError(f"reward.{name} = {weight} is no weight", hint="give a number, such as 1")


def deviations(config: Mapping[str, object]) -> list[str]:
    """Deviations of a run with these settings from the paper's algorithm, for its record and its model's card."""
    known = {
        ("critic", "shared"): "the critic is a head on the student's hidden states, not a model of its own",
        ("freeze_embeddings", True): "the embedding of tokens and the output layer are not trained",
        ("optimizer", "adamw-8bit"): "AdamW keeps its moments in 8 bit",
        ("behavior_logprobs", "engine"): "probability ratios are to the rollout engine's log-probabilities",
    }
    found = [text for (name, value), text in known.items() if config.get(name) == value]
    lora = config.get("lora")
    if isinstance(lora, Mapping) and lora.get("rank") is not None:
        found.append(f"an adapter of rank {lora['rank']} is trained instead of the model")
    return found
