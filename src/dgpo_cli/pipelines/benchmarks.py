"""A model on QA sets: questions and an index for each, answers recorded as they come, one report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dgpo_cli.core import schema
from dgpo_cli.core.device import Precision
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile, to_json, write_atomic
from dgpo_cli.core.types import Question, question_to_json
from dgpo_cli.engine.registry import EngineName
from dgpo_cli.errors import ConfigError
from dgpo_cli.evaluate.published import Conditions
from dgpo_cli.evaluate.run import evaluate
from dgpo_cli.evaluate.summary import Report, macro_average
from dgpo_cli.pipelines.beside_paper import published_average, published_em, published_row
from dgpo_cli.qa_sets import SEVEN, canonical_name, load_questions
from dgpo_cli.reporting.evaluation import markdown
from dgpo_cli.retrieval.open import OpenIndex, check_index, is_server, open_index
from dgpo_cli.retrieval.rerank import RerankConfig
from dgpo_cli.rollout.settings import RolloutSettings

if TYPE_CHECKING:
    from dgpo_cli.models.load import LoadedModel
    from dgpo_cli.pipelines.agents import Agent

BYTES_PER_QUESTION = 60_000  # ours: a record of four searches with three passages each, rounded up


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
    engine: EngineName = "transformers"
    precision: Precision = "auto"
    rerank: RerankConfig = field(default_factory=RerankConfig)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit = {self.limit} leaves no question", hint="give a limit of 1 or more")
        if self.engine not in get_args(EngineName):
            raise ConfigError(f"no engine {self.engine!r}", hint=f"known: {', '.join(get_args(EngineName))}")
        if self.samples < 1:
            raise ConfigError(f"samples = {self.samples} leaves no answer", hint="give --samples 1 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.samples} samples at temperature 0 are one answer {self.samples} times",
                hint="give --temperature 1",
            )

    def rollout(self) -> RolloutSettings:
        return RolloutSettings(
            max_turns=self.max_searches,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            max_observation_tokens=self.max_observation_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            wave=self.wave,
            stop_repeats=True,
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    name: str
    questions: list[Question]
    index: OpenIndex

    @property
    def questions_digest(self) -> str:
        lines = (json.dumps(question_to_json(question), sort_keys=True) for question in self.questions)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def parse_benchmarks(text: str) -> tuple[str, ...]:
    """QA sets in the order given, each once; `all` is the paper's seven. Raises ConfigError for an unknown one."""
    names: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        names += SEVEN if part == "all" else [canonical_name(part)]
    if not names:
        raise ConfigError(f"no benchmark in {text!r}", hint="give --bench all, or names such as --bench nq,hotpotqa")
    return tuple(dict.fromkeys(names))


def parse_indexes(text: str, benchmarks: Sequence[str]) -> dict[str, str]:
    """ "DIR" for every benchmark, "NAME=DIR" for one, or both, comma-separated; addresses in a row are one index.

    Raises ConfigError for an unknown benchmark, a second default, or a benchmark that is left without an index.
    """
    default: str | None = None
    named: dict[str, str] = {}
    last: str | None = None  # the benchmark just named
    parts = [text] if Path(text).exists() else text.split(",")  # a comma may stand in the name of a folder
    for part in filter(None, (part.strip() for part in parts)):
        name, separator, location = part.partition("=")
        if separator and "/" not in name:  # an address may hold = after its first slash
            last = canonical_name(name)
            named[last] = location
        elif last is not None and is_server(named[last]) and is_server(part):
            named[last] += f",{part}"
        elif default is not None and last is None and is_server(default) and is_server(part):
            default += f",{part}"
        elif default is not None:
            raise ConfigError(
                f"two indexes for all benchmarks: {default} and {part}", hint="write --index NAME=DIR,..."
            )
        else:
            default, last = part, None
    indexes = {name: named.get(name, default) for name in benchmarks}
    missing = [name for name, location in indexes.items() if not location]
    if missing:
        raise ConfigError(
            f"no index for {', '.join(missing)}", hint=f"write --index {missing[0]}=DIR,... or one DIR for all"
        )
    return {name: str(location) for name, location in indexes.items()}


def open_benchmarks(settings: EvalSettings, bench_dir: Path | None) -> list[Benchmark]:
    """Questions and open indexes; an index that several benchmarks use is opened once."""
    for location in dict.fromkeys(settings.indexes.values()):
        check_index(location)
    opened = {
        location: open_index(location, device=settings.device, rerank=settings.rerank)
        for location in dict.fromkeys(settings.indexes.values())
    }
    return [
        Benchmark(name, load_questions(name, bench_dir=bench_dir, limit=settings.limit), opened[settings.indexes[name]])
        for name in settings.benchmarks
    ]


def identity(settings: EvalSettings, benchmarks: Iterable[Benchmark], loaded: LoadedModel) -> dict[str, Any]:
    """What decides the answers, for the run folder: the same identity goes on, another one starts anew."""
    return asdict(settings) | {
        "weights": weights_digest(loaded),
        "protocol": loaded.protocol.digest,
        "computed_in": computed_in(loaded),  # what `precision` comes to on this machine
        "corpora": {b.name: b.index.digest for b in benchmarks},
        "questions": {b.name: b.questions_digest for b in benchmarks},
    }


def computed_in(loaded: LoadedModel) -> str:
    """The precision of the weights, as float32 or bfloat16."""
    return str(loaded.model.dtype).removeprefix("torch.")


def weights_digest(loaded: LoadedModel) -> str:
    """Of a folder the hash of its weights, of a hub model its commit."""
    if not loaded.source.local:
        return f"{loaded.source.location}@{loaded.model.config._commit_hash}"
    digest = hashlib.sha256()
    for path in sorted(Path(loaded.source.location).glob("*.safetensors")):
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def answered(folder: Path, benchmarks: Iterable[Benchmark]) -> int:
    """Draws that a run folder holds."""
    files = (folder / f"{benchmark.name}.jsonl" for benchmark in benchmarks)
    return sum(max(0, file.read_bytes().count(b"\n") - 1) for file in files if file.is_file())


def record_headers(
    settings: EvalSettings, loaded: LoadedModel, agent: Agent, benchmarks: Iterable[Benchmark]
) -> dict[str, dict[str, Any]]:
    """By benchmark, what its record file says about how its answers came about: all that `--compare` looks at."""
    shared = {
        "model": {
            "name": settings.model,
            "location": loaded.source.location,
            "weights": weights_digest(loaded),
            "protocol": loaded.protocol.name,
            "parameters": loaded.model.num_parameters(),
        },
        "protocol": agent.codec.protocol.to_json(),
        "settings": agent.settings.to_json()
        | {"capacity": agent.engine.capacity, "samples": settings.samples, "computed_in": computed_in(loaded)}
        | ({} if settings.engine == "transformers" else {"engine": settings.engine}),
    }
    return {
        b.name: shared
        | {
            "index": {"location": b.index.location, "digest": b.index.digest, **_corpus(b.index)}
            | ({"rerank": asdict(settings.rerank)} if b.index.reranked else {}),
            "questions": {"digest": b.questions_digest, "limit": settings.limit},
        }
        for b in benchmarks
    }


def run_benchmarks(
    agent: Agent,
    benchmarks: Sequence[Benchmark],
    folder: Path,
    headers: Mapping[str, Mapping[str, Any]],
    *,
    samples: int = 1,
    progress: Progress | None = None,
) -> dict[str, Report]:
    """Answer everything that `folder` has no record of, into `folder`/NAME.jsonl."""
    from dgpo_cli.models.load import keep_tokenizer

    keep_tokenizer(folder, agent.codec.tokenizer)
    total, before = sum(len(benchmark.questions) for benchmark in benchmarks) * samples, 0
    reports = {}
    for benchmark in benchmarks:

        def tell(done: int, _: int, /, note: str = "", *, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total, note)

        path, header = folder / f"{benchmark.name}.jsonl", headers[benchmark.name]
        with RecordFile(path, key="key", schema="evaluation", meta=header) as records:
            reports[benchmark.name] = evaluate(
                benchmark.questions,
                run_batch=replace(agent, retriever=benchmark.index.retriever).finished,
                decode=agent.codec.decode,
                samples=samples,
                records=records,
                progress=tell,
            )
        before += len(benchmark.questions) * samples
    return reports


_SHARE = schema.number(0, 1)
REPORT = schema.record(  # what others than its writer read of report.json
    {
        "model": schema.record({"weights": schema.text()}),
        "complete": schema.FLAG,
        "decoding": schema.record({"temperature": schema.number(0)}),
        "benchmarks": schema.map_of(
            schema.record(
                {
                    "n": schema.whole(0),
                    "em": _SHARE,
                    "f1": _SHARE,
                    "em_interval": schema.record({"low": _SHARE, "high": _SHARE}),
                    "index": schema.record(
                        {"passages": schema.maybe(schema.whole(0)), "retriever": schema.maybe(schema.text())}
                    ),
                }
            )
        ),
    }
)


def report_json(
    settings: EvalSettings,
    loaded: LoadedModel,
    agent: Agent,
    benchmarks: Sequence[Benchmark],
    reports: Mapping[str, Report],
    headers: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The object that `dgpo eval --json` prints and report.json keeps, without ARCap."""
    row, parameters = published_row(loaded.source), loaded.model.num_parameters() / 1e9
    described = {
        b.name: reports[b.name].to_json()
        | {"index": headers[b.name]["index"], "questions": headers[b.name]["questions"]}
        | {"published": published_em(row, _conditions(settings, b, reports[b.name], parameters))}
        for b in benchmarks
    }
    rollout = agent.settings
    return {
        "benchmarks": described,
        "avg": macro_average(reports) | {"published": published_average(row, described)},
        "complete": not any(report.failed_searches for report in reports.values()),
        "model": headers[benchmarks[0].name]["model"],
        "decoding": {"temperature": rollout.temperature, "seed": rollout.seed, "samples": settings.samples},
        "rollout": rollout.to_json() | {"capacity": agent.engine.capacity, "computed_in": computed_in(loaded)},
    }


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    write_atomic(folder / "report.json", to_json(report, indent=1) + "\n")
    write_atomic(folder / "report.md", markdown(report))


def _corpus(index: OpenIndex) -> dict[str, Any]:
    manifest = index.manifest
    if manifest is None:
        return {"corpus_digest": None, "passages": None, "retriever": None}
    return {
        "corpus_digest": manifest.corpus_digest,
        "passages": manifest.passages,
        "retriever": manifest.retriever,
    }


def _conditions(settings: EvalSettings, benchmark: Benchmark, report: Report, parameters: float) -> Conditions:
    corpus = _corpus(benchmark.index)
    return Conditions(
        benchmark.name,
        report.overall.n,
        corpus["passages"],
        corpus["retriever"],
        settings.top_k,
        settings.max_searches,
        settings.temperature,
        parameters,
    )
