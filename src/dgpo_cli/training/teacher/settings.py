"""Settings of `distill-data`: what the config.toml of its run holds. "paper" and "ours" as in `settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.config import note, require_ranges, setting
from dgpo_cli.core.device import PRECISION, Precision
from dgpo_cli.engine.registry import IN_PROCESS, require_engine_name
from dgpo_cli.engine.turnwise.model_server import ModelServerAccess
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.rerank import RerankConfig

GOLD = "gold"  # the teacher that knows the supporting passages


@dataclass(frozen=True, slots=True)
class DistillDataSettings:
    """Settings of `dgpo distill-data`."""

    teacher: str = field(
        metadata=note("alias, hub id, folder or run; gold for a script that knows the supporting passages")
    )
    index: str = field(metadata=note("index folder or server address"))
    questions: str = field(metadata=note("QA sets or question files, comma-separated"))
    bench_dir: str | None = setting(None, "folder of the QA sets instead of the hub")
    keep: Literal["correct", "searched", "all"] = setting("correct", "which trajectories", source="paper")
    always_search: bool = setting(False, "ask for a search before every answer", source="ours; see arXiv 2604.04651")
    demonstrations: str | None = setting(None, "file that says how to answer, instead of a teacher")
    samples: int = setting(1, "attempts at each question", source="ours", range="positive")
    limit: int | None = setting(None, "first questions", range="positive")
    seed: int = setting(0, "of every draw")
    teacher_8bit: bool = setting(False, "load the teacher in 8 bit")
    precision: Precision = setting("auto", PRECISION, source="ours")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    teacher_url: str | None = setting(None, "of a server that has `teacher`")
    tokenizer: str | None = setting(None, "with teacher_url: the model whose tokenizer and agent text are used")
    engine: str = setting(IN_PROCESS, "that runs a teacher which is loaded here")
    format: str | None = setting(None, "of the agent's text for a model that was trained with none; tags by default")
    rerank: RerankConfig = field(default_factory=RerankConfig)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    server: ModelServerAccess = field(default_factory=ModelServerAccess)  # how teacher_url is asked

    def __post_init__(self) -> None:
        require_ranges(self)
        require_engine_name(self.engine)
        if self.written:
            if self.tokenizer is None:
                raise ConfigError("demonstrations need the tokens of a model", hint="give --tokenizer STUDENT")
            if self.samples != 1:
                raise ConfigError(
                    f"samples = {self.samples}: there is one demonstration of a question", hint="leave --samples out"
                )
        elif self.samples > 1 and self.rollout.temperature == 0:
            raise ConfigError(
                f"{self.samples} samples at temperature 0 are one answer {self.samples} times",
                hint="leave --samples out, or give --temperature 1",
            )
        elif (self.teacher_url is None) != (self.tokenizer is None):
            raise ConfigError("teacher_url and tokenizer belong together", hint="give --teacher-url and --tokenizer")
        if (self.teacher_url is not None or self.written) and (self.teacher_8bit or self.engine != IN_PROCESS):
            raise ConfigError(
                "--teacher-8bit and --engine are for a teacher that is loaded here", hint="leave them out"
            )
        if self.engine != IN_PROCESS and self.teacher_8bit:
            raise ConfigError(
                f"--engine {self.engine} does not load a teacher in 8 bit here", hint="leave out --teacher-8bit"
            )

    @property
    def written(self) -> bool:
        """Whether a script answers and no model."""
        return self.demonstrations is not None or self.teacher == GOLD
