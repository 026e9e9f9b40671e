"""QA sets to measure a model on: settings, and questions and an index for each set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.device import Precision
from dgpo_cli.core.places import is_file, is_there
from dgpo_cli.core.types import Question, question_to_json
from dgpo_cli.engine.registry import IN_PROCESS, require_engine_name
from dgpo_cli.engine.turnwise.model_server import ModelServerAccess
from dgpo_cli.errors import ConfigError
from dgpo_cli.qa_sets import SEVEN, canonical_name, load_questions, name_and_place, require_asked_of
from dgpo_cli.retrieval.open import OpenIndex, check_index, open_index
from dgpo_cli.retrieval.registry import is_address, is_server
from dgpo_cli.retrieval.rerank import RerankConfig


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """`indexes` maps every benchmark to an index folder or server."""

    model: str
    benchmarks: tuple[str, ...]
    indexes: dict[str, str]
    limit: int | None = None  # first questions of each benchmark
    temperature: float = 0.0  # ours; the paper's released code samples at 1
    samples: int = 1  # draws per question
    arcap: bool = False  # also with gold context
    top_k: int = 3  # paper
    max_searches: int = 4  # paper
    max_new_tokens: int = 500  # paper, per turn
    max_observation_tokens: int = 500  # paper
    max_prompt_tokens: int = 2048  # paper
    max_tokens: int = 4096  # paper, whole episode
    wave: int = 64  # ours, questions at once
    seed: int = 0
    device: str = "auto"
    engine: str = IN_PROCESS
    precision: Precision = "auto"
    stop_repeats: bool = True  # ours, ends an episode that repeats itself
    format: str | None = None  # of the agent's text, where the model was trained with none: tags by default
    rerank: RerankConfig = field(default_factory=RerankConfig)
    model_url: str | None = None  # of a server that answers; `model` has its tokenizer and agent text
    model_name: str | None = None  # what it is called there
    server: ModelServerAccess = field(default_factory=ModelServerAccess)  # how model_url is asked

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit = {self.limit} leaves no question", hint="give a limit of 1 or more")
        require_engine_name(self.engine)
        if self.model_url is not None and (self.engine != IN_PROCESS or self.precision != "auto"):
            raise ConfigError(
                "--engine and precision are for a model that is loaded here", hint="leave them out with --model-url"
            )
        if self.samples < 1:
            raise ConfigError(f"samples = {self.samples} leaves no answer", hint="give --samples 1 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.samples} samples at temperature 0 are one answer {self.samples} times",
                hint="give --temperature 1",
            )

    def rollout(self) -> RolloutSettings:
        """The limits as the search loop takes them."""
        return RolloutSettings(
            max_turns=self.max_searches,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            max_observation_tokens=self.max_observation_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            wave=self.wave,
            stop_repeats=self.stop_repeats,
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A QA set with the index that is searched for it."""

    name: str
    questions: list[Question]
    index: OpenIndex

    @property
    def questions_digest(self) -> str:
        lines = (json.dumps(question_to_json(question), sort_keys=True) for question in self.questions)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def parse_benchmarks(text: str) -> dict[str, str]:
    """By the name of each set, what was asked: names of QA sets, files of questions and hub sets, comma-separated.

    In the order given, each once; `all` is the paper's seven. Raises ConfigError for an unknown set, or for two of one
    name: their answers would be one file.
    """
    asked: dict[str, str] = {}
    parts = [text] if is_file(text) else text.split(",")  # a comma may stand in the name of a file
    for part in filter(None, (part.strip() for part in parts)):
        for one in SEVEN if part == "all" else [part]:
            name, place = name_and_place(one)
            if asked.setdefault(name, place) != place:
                raise ConfigError(
                    f"two question sets are called {name}: {asked[name]} and {place}", hint="rename one of the files"
                )
    if not asked:
        raise ConfigError(f"no benchmark in {text!r}", hint="give --bench all, or names such as --bench nq,hotpotqa")
    return asked


def parse_indexes(text: str, benchmarks: Collection[str]) -> dict[str, str]:
    """ "DIR" for every benchmark, "NAME=DIR" for one, or both, comma-separated; addresses in a row are one index.

    Raises ConfigError for an unknown benchmark, a second default, or a benchmark that is left without an index.
    """
    default: str | None = None
    named: dict[str, str] = {}
    last: str | None = None  # the benchmark just named
    parts = [text] if is_there(text) else text.split(",")  # a comma may stand in the name of a folder
    for part in filter(None, (part.strip() for part in parts)):
        name, separator, location = part.partition("=")
        if separator and "/" not in name and not is_server(part):  # an address may hold = after its first slash
            last = name if name in benchmarks else canonical_name(name)
            if last in named:
                raise ConfigError(f"two indexes for {last}: {named[last]} and {location}", hint="give each set one")
            named[last] = location
        elif last is not None and is_address(named[last]) and is_address(part):
            named[last] += f",{part}"
        elif default is not None and last is None and is_address(default) and is_address(part):
            default += f",{part}"
        elif default is not None:
            raise ConfigError(
                f"two indexes for all benchmarks: {default} and {part}", hint="write --index NAME=DIR,..."
            )
        else:
            default, last = part, None
    idle = [name for name in named if name not in benchmarks]
    if idle:
        raise ConfigError(
            f"an index for {idle[0]}, which is not asked", hint=f"add {idle[0]} to --bench, or leave it out"
        )
    indexes = {name: named.get(name, default) for name in benchmarks}
    missing = [name for name, location in indexes.items() if not location]
    if missing:
        raise ConfigError(
            f"no index for {', '.join(missing)}", hint=f"write --index {missing[0]}=DIR,... or one DIR for all"
        )
    return {name: str(location) for name, location in indexes.items()}


def open_benchmarks(settings: EvalSettings, asked: Mapping[str, str], bench_dir: Path | None) -> list[Benchmark]:
    """Questions and open indexes; an index that several benchmarks use is opened once. `asked` as parse_benchmarks."""
    require_asked_of(bench_dir, list(asked.values()))
    for location in dict.fromkeys(settings.indexes.values()):
        check_index(location)
    opened = {
        location: open_index(location, device=settings.device, rerank=settings.rerank)
        for location in dict.fromkeys(settings.indexes.values())
    }
    return [
        Benchmark(name, load_questions(one, bench_dir=bench_dir, limit=settings.limit), opened[settings.indexes[name]])
        for name, one in asked.items()
    ]
