"""The teacher answers questions in the search loop; its trajectories are kept for the cold start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.agent.identity import dated
from dgpo_cli.core.figures import percent
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import attempts, recorded, refuse_broken_search, write_trajectories
from dgpo_cli.core.types import Question
from dgpo_cli.engine.registry import IN_PROCESS
from dgpo_cli.engine.turnwise.model_server import ModelServer
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.sources import ModelSource, context_of, load_protocol, resolve
from dgpo_cli.models.tokenizer_file import tokenizer_file
from dgpo_cli.qa_sets import training_set
from dgpo_cli.qa_sets.demonstrations import Demonstration, read_demonstrations
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.teacher.demonstrated import playable, require_shown
from dgpo_cli.training.teacher.keeping import Keep, kept, require_found, supported
from dgpo_cli.training.teacher.settings import GOLD, DistillDataSettings

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.engine.base import Engine
    from dgpo_cli.retrieval.base import Retriever

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Distilled:
    """What the teacher made; searches and tokens are means of an episode."""

    episodes: int
    kept: int
    share_kept: float
    em: float
    searches: float
    tokens: float
    written_tokens: float
    failed_searches: int  # episodes
    path: str  # of the kept ones
    origin: dict[str, str]  # where their token ids are from, for records: {} where the teacher was loaded here

    def to_json(self) -> dict[str, Any]:
        return self.origin | {name: value for name, value in asdict(self).items() if name != "origin"}


def questions_of(settings: DistillDataSettings) -> list[Question]:
    """The questions that are answered. Raises InputError where the teacher cannot answer any."""
    if settings.demonstrations is not None:
        return [entry.question for entry in _demonstrated(settings)]
    questions = training_set(settings.questions, None if settings.bench_dir is None else Path(settings.bench_dir))
    return supported(questions) if settings.written else questions


def _demonstrated(settings: DistillDataSettings) -> list[Demonstration]:
    assert settings.demonstrations is not None and settings.tokenizer is not None
    path, source = Path(settings.demonstrations), resolve(settings.tokenizer)
    codec = Codec(tokenizer_file(source), load_protocol(source, settings.format)[0])
    return playable(path, read_demonstrations(path), codec, settings.rollout)


def run_distill_data(
    settings: DistillDataSettings,
    run: RunDir,
    *,
    questions: Sequence[Question],
    progress: Progress | None,
    key: str | None = None,
    at_once: int | None = None,
) -> Distilled:
    """Load or reach what the settings name, and let the teacher answer `questions`. `key` is for the teacher's server.

    `at_once` episodes are open in a model that is loaded here, where that is fewer than a wave.

    With a server the trajectories are in the tokens of `settings.tokenizer`; the header of their file and the summary
    tell whether those were sampled or made from the server's text.
    """
    agent, origin = _teacher(settings, run, questions, key, at_once)
    summary = distill_data(
        agent,
        questions,
        samples=settings.samples,
        keep=settings.keep,
        always_search=settings.always_search,
        folder=run.path,
        progress=progress,
        origin=origin,
    )
    if settings.teacher == GOLD:
        require_found(summary.episodes, summary.kept, run.path)
    if settings.demonstrations is not None:
        path = Path(settings.demonstrations)
        require_shown(path, read_demonstrations(path), run.path)
    run.finish(summary.to_json())
    return summary


def _teacher(
    settings: DistillDataSettings, run: RunDir, questions: Sequence[Question], key: str | None, at_once: int | None
) -> tuple[Agent, dict[str, str]]:
    """The teacher, and what a record says about where its token ids are from."""
    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.models.load import load_tokenizer

    retriever = open_index(settings.index, device=settings.device, rerank=settings.rerank).retriever
    if not settings.written and settings.teacher_url is None and settings.engine == IN_PROCESS:
        return _loaded(settings, run, questions, retriever, at_once), {}
    source = resolve(settings.tokenizer or settings.teacher)
    own, trained = load_protocol(source, settings.format)
    tokenizer = load_tokenizer(source)
    codec = Codec(tokenizer, dated(run, tokenizer, _asked(settings, own, questions, trained=trained)))
    rollout = settings.rollout
    if settings.written:
        engine, origin = _writing(settings, questions, codec, source)
        rollout = replace(rollout, stop_repeats=False)  # what a person or a rule wrote again was meant
    elif settings.teacher_url is None:
        engine, origin = _running(settings, codec, source, trained=trained), {}
    else:
        engine, origin = _answering(settings, settings.teacher_url, codec, source, key)
    return Agent(engine, codec, retriever, rollout, seed=settings.seed), origin


def _loaded(
    settings: DistillDataSettings,
    run: RunDir,
    questions: Sequence[Question],
    retriever: Retriever,
    at_once: int | None,
) -> Agent:
    """A teacher that runs in this process."""
    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.models.devices import load_frozen

    loaded = load_frozen(
        settings.teacher,
        device=settings.device,
        precision=settings.precision,
        eight_bit=settings.teacher_8bit,
        form=settings.format,
    )
    if loaded.raw is not None:
        _log.warning("%s", loaded.raw)
    protocol = _asked(settings, loaded.protocol, questions, trained=loaded.trained_with_protocol)
    codec = Codec(loaded.tokenizer, dated(run, loaded.tokenizer, protocol))
    return Agent.of(loaded.model, codec, retriever, settings.rollout, seed=settings.seed, at_once=at_once)


def _writing(
    settings: DistillDataSettings, questions: Sequence[Question], codec: Codec, source: ModelSource
) -> tuple[Engine, dict[str, str]]:
    """Demonstrations of a file, or those that follow from the gold passages."""
    from dgpo_cli.training.teacher.written import file_script, gold_script, written_engine

    file = settings.demonstrations
    script = gold_script(questions, codec) if file is None else file_script(file, codec.format)
    longest = settings.rollout.max_tokens
    engine = written_engine(codec, script, min(longest, context_of(source.name) or longest))
    return engine, {"written_by": file or settings.teacher}


def _running(settings: DistillDataSettings, codec: Codec, source: ModelSource, *, trained: bool) -> Engine:
    """A teacher that another engine runs."""
    from dgpo_cli.engine.registry import loading_engine
    from dgpo_cli.models.devices import inference_dtype, training_device
    from dgpo_cli.models.load import untrained

    if not trained:
        _log.warning("%s", untrained(settings.teacher))
    weights = str(inference_dtype(training_device(settings.device))).removeprefix("torch.")
    return loading_engine(settings.engine).open(
        source, codec, max_tokens=settings.rollout.max_tokens, dtype=weights, seed=settings.seed
    )


def _answering(
    settings: DistillDataSettings, url: str, codec: Codec, source: ModelSource, key: str | None
) -> tuple[Engine, dict[str, str]]:
    """A teacher that a server has."""
    from dgpo_cli.engine.turnwise.opening import served_engine

    engine, sampled = served_engine(
        ModelServer(url, settings.teacher, key),
        codec,
        settings.server,
        max_tokens=settings.rollout.max_tokens,
        tokenizer=source.name,
    )
    return engine, {"token_ids": "sampled" if sampled else "from text"}


def _asked(
    settings: DistillDataSettings, protocol: Protocol, questions: Sequence[Question], *, trained: bool
) -> Protocol:
    """The text, and by what passages are reranked. That of a model that has none of its own may ask for a search before
    every answer, and says how to abstain where some of the questions are unanswerable."""
    protocol = protocol.reranked_by(settings.rerank.model)
    if trained:
        return protocol
    searching = protocol.always_searching() if settings.always_search else protocol
    return searching.abstaining() if any(map(is_unanswerable, questions)) else searching


def distill_data(
    agent: Agent,
    questions: Sequence[Question],
    *,
    samples: int,
    keep: Keep,
    folder: Path,
    progress: Progress | None,
    always_search: bool = False,
    origin: Mapping[str, str] | None = None,
) -> Distilled:
    """Write `folder`/episodes.jsonl (all) and `folder`/trajectories.jsonl (kept, see `kept`).

    Resumable at any moment: an episode is in the file as soon as it is finished, and only those that are missing are
    generated. Their draws are those of an undisturbed call where the engine runs here; a server may write others.
    Raises RetrievalError when too many episodes fail to search; such episodes are asked again by the next call.
    """
    from dgpo_cli.models.load import keep_tokenizer

    keep_tokenizer(folder, agent.codec.tokenizer)
    protocol = agent.codec.protocol.with_limits(asdict(agent.settings))
    meta = {
        "protocol": protocol.to_json(),
        "settings": agent.record(),
        "tokenizer": agent.codec.digest,
        **(origin or {}),
    }
    asked = attempts(questions, samples)
    failures: list[str] = []
    with RecordFile(folder / "episodes.jsonl", key="key", schema="trajectories", meta=meta) as records:
        missing = [pair for key, pair in asked.items() if key not in records.keys]
        before, right, made_now = len(asked) - len(missing), 0, 0

        def tell(done: int, _: int, /, note: str = "") -> None:
            if progress is not None:
                share = f"{percent(right / made_now)} right, " if made_now else ""
                progress(before + done, len(asked), share + note)

        tell(0, len(missing))
        for trajectory in agent.finished(missing, progress=tell):
            if trajectory.failed_search is not None:  # the next call asks again
                failures.append(trajectory.failed_search)
                refuse_broken_search(failures, len(asked))
                continue
            records.append({"key": trajectory.key} | trajectory.to_json())
            made_now += 1
            right += trajectory.score is not None and trajectory.score.correct
        place = {key: number for number, key in enumerate(asked)}
        made = [t for t in records.made(recorded) if t.key in place]
    made.sort(key=lambda t: place[t.key])
    taken = [t for t in made if kept(t, keep, agent.codec, always_search=always_search)]
    write_trajectories(folder / "trajectories.jsonl", taken, meta)
    count = max(1, len(made))
    return Distilled(
        episodes=len(made),
        kept=len(taken),
        share_kept=len(taken) / count,
        em=sum(t.score.correct for t in made if t.score is not None) / count,
        searches=sum(len(t.searches) for t in made) / count,
        tokens=sum(len(t.token_ids) for t in made) / count,
        written_tokens=sum(t.num_written for t in made) / count,
        failed_searches=len(failures),
        path=str(folder / "trajectories.jsonl"),
        origin=dict(origin or {}),
    )
