"""Settings of `make-questions`: what the config.toml of its run holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dgpo_cli.core.config import note, require_ranges, setting
from dgpo_cli.core.device import PRECISION, Precision
from dgpo_cli.engine.turnwise.model_server import ModelServerAccess
from dgpo_cli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MakeQuestionsSettings:
    """The defaults are ours."""

    index: str = field(metadata=note("index folder"))
    teacher: str | None = setting(None, "alias, hub id, folder or run")
    no_model: bool = setting(False, "make weaker questions from titles and first sentences, without a teacher")
    teacher_url: str | None = setting(None, "of a server that has `teacher`")
    tokenizer: str | None = setting(None, "with teacher_url: the model whose tokenizer and chat template are used")
    passages: int = setting(1000, "that are drawn; each gives a question of one hop and one of two at most")
    hops: Literal["both", "1", "2"] = setting("both", "of the questions")
    top_k: int = setting(3, "passages among which some query must find the gold one")
    validation: float = setting(0.1, "share of the documents", range="share")
    test: float = setting(0.1, "share of the documents", range="share")
    temperature: float = setting(0.7, "of the teacher that writes; it answers greedily", range="not negative")
    max_question_tokens: int = setting(120, "that the teacher writes, the answer included", range="positive")
    max_answer_tokens: int = setting(32, "that the teacher answers with", range="positive")
    max_tokens: int = setting(2048, "of a prompt with its reply; longer passages give no question", range="positive")
    wave: int = setting(64, "passages that are worked on together", range="positive")
    seed: int = setting(0, "of every draw")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    precision: Precision = setting("auto", PRECISION)
    teacher_8bit: bool = setting(False, "load the teacher in 8 bit")
    server: ModelServerAccess = field(default_factory=ModelServerAccess)  # how teacher_url is asked

    def __post_init__(self) -> None:
        require_ranges(self)
        for name in ("passages", "top_k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} leaves nothing", hint=f"give {name} 1 or more")
        if self.validation + self.test >= 1:
            raise ConfigError(
                f"validation = {self.validation} and test = {self.test} leave no document for training",
                hint="give shares that sum to less than 1",
            )
        if self.no_model == (self.teacher is not None):
            raise ConfigError(
                "a teacher and no_model exclude each other" if self.no_model else "nobody makes the questions",
                hint="give --teacher MODEL, --teacher-url ADDRESS or --no-model",
            )
        if (self.teacher_url is None) != (self.tokenizer is None):
            raise ConfigError("teacher_url and tokenizer belong together", hint="give --teacher-url and --tokenizer")
        if self.teacher_8bit and not self.is_loaded:
            raise ConfigError("teacher_8bit is for a teacher that is loaded here", hint="leave it out")

    @property
    def is_loaded(self) -> bool:
        """Whether the teacher is a model in this process."""
        return self.teacher is not None and self.teacher_url is None
