"""Ask questions, grade the answers, and summarize them per benchmark and hop count.

Deviations from the reference (DGPO, Search-R1): every question counts (it drops the last incomplete batch), searches
are those that were made (it counts the tag's occurrences, the correction's text included), and an episode whose search
failed is no answer of the model: it is reported apart and asked again by the next call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.text import contains_answer, f1, substring_match
from dgpo_cli.core.types import Question, StopReason, Trajectory, attempt_key, refuse_broken_search
from dgpo_cli.errors import InputError
from dgpo_cli.evaluate.stats import Interval, mean_interval, wilson
from dgpo_cli.rewards import exact_match

RunBatch = Callable[[Sequence[Question]], Iterable[Trajectory]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one graded episode adds to a summary."""

    key: str
    hops: int | None
    em: bool
    f1: float
    substring: bool
    answer_retrieved: bool  # a gold answer stands in a passage that was retrieved
    stop: StopReason
    searches: int
    turns: int
    invalid_actions: int
    truncated_observations: int
    escaped_tags: int
    written_tokens: int


def grade(trajectory: Trajectory) -> Outcome:
    """An episode without an answer scores 0 everywhere."""
    question, answer = trajectory.question, trajectory.answer
    return Outcome(
        key=trajectory.key,
        hops=question.hops,
        em=exact_match.score(question, trajectory).correct,
        f1=0.0 if answer is None else f1(answer, question.answers),
        substring=answer is not None and substring_match(answer, question.answers),
        answer_retrieved=any(
            contains_answer(hit.passage.contents, question.answers) for call in trajectory.searches for hit in call.hits
        ),
        stop=trajectory.stop,
        searches=len(trajectory.searches),
        turns=trajectory.turns,
        invalid_actions=trajectory.invalid_actions,
        truncated_observations=trajectory.truncated_observations,
        escaped_tags=trajectory.escaped_tags,
        written_tokens=trajectory.num_written,
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares and means over `n` questions."""

    n: int
    em: float
    em_interval: Interval
    f1: float
    substring: float
    answer_retrieved: float
    searches: float
    turns: float
    written_tokens: float
    invalid_actions: int  # in all, like the counts below
    truncated_observations: int
    escaped_tags: int
    stops: Mapping[str, int]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Summary:
        n = len(outcomes)

        def mean(values: Iterable[float]) -> float:
            return sum(values) / n if n else 0.0

        return cls(
            n=n,
            em=mean(o.em for o in outcomes),
            em_interval=wilson(sum(o.em for o in outcomes), n),
            f1=mean(o.f1 for o in outcomes),
            substring=mean(o.substring for o in outcomes),
            answer_retrieved=mean(o.answer_retrieved for o in outcomes),
            searches=mean(o.searches for o in outcomes),
            turns=mean(o.turns for o in outcomes),
            written_tokens=mean(o.written_tokens for o in outcomes),
            invalid_actions=sum(o.invalid_actions for o in outcomes),
            truncated_observations=sum(o.truncated_observations for o in outcomes),
            escaped_tags=sum(o.escaped_tags for o in outcomes),
            stops=dict(sorted(Counter(o.stop.value for o in outcomes).items())),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark. Questions whose search failed are in none of the summaries."""

    outcomes: tuple[Outcome, ...]  # in the order of the questions
    failed_searches: int
    failure: str | None  # cause of the first failed search
    overall: Summary
    by_hops: Mapping[int, Summary]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], failures: Sequence[str] = ()) -> Report:
        hops = sorted({o.hops for o in outcomes if o.hops is not None})
        return cls(
            outcomes=tuple(outcomes),
            failed_searches=len(failures),
            failure=failures[0] if failures else None,
            overall=Summary.of(outcomes),
            by_hops={h: Summary.of([o for o in outcomes if o.hops == h]) for h in hops},
        )

    @property
    def asked(self) -> int:
        return len(self.outcomes) + self.failed_searches

    def to_json(self) -> dict[str, Any]:
        return asdict(self.overall) | {
            "asked": self.asked,
            "failed_searches": self.failed_searches,
            "failure": self.failure,
            "hops": {str(hops): asdict(summary) for hops, summary in self.by_hops.items()},
        }


def evaluate(
    questions: Sequence[Question],
    *,
    run_batch: RunBatch,
    wave: int,
    records: RecordFile | None = None,
    progress: Progress | None = None,
) -> Report:
    """Answer the questions of one benchmark in fixed waves and grade them.

    Records that are there already are not asked again; a wave that was left incomplete is run again as a whole, so that
    an interrupted evaluation ends with the same answers as an undisturbed one. Raises InputError for a question that
    occurs twice, RetrievalError when too many fail to search.
    """
    keys = _keys(questions)
    wanted = set(keys)
    graded = {o.key: o for o in _recorded(records) if o.key in wanted} if records is not None else {}
    failures: dict[str, str] = {}
    for start in range(0, len(questions), wave):
        missing = {key for key in keys[start : start + wave] if key not in graded}
        if missing:
            for trajectory in run_batch(questions[start : start + wave]):
                if trajectory.key not in missing:
                    continue
                if trajectory.failed_search is not None:
                    failures[trajectory.key] = trajectory.failed_search
                    continue
                graded[trajectory.key] = grade(trajectory)
                if records is not None:
                    records.append(_record(trajectory))
        refuse_broken_search(list(failures.values()), len(questions))
        if progress is not None:
            progress(min(start + wave, len(questions)), len(questions))
    return Report.of([graded[k] for k in keys if k in graded], [failures[k] for k in keys if k in failures])


def _keys(questions: Sequence[Question]) -> list[str]:
    keys = [attempt_key(question, 0) for question in questions]
    for key, count in Counter(keys).items():
        if count > 1:
            name = key.removesuffix("/0")
            raise InputError(f"question {name!r} occurs {count} times", hint="give each question its own id")
    return keys


def _record(trajectory: Trajectory) -> dict[str, Any]:
    # Nothing is trained on these tokens, and log-probabilities would be half of the file.
    kept = replace(trajectory, logprobs=None, score=exact_match.score(trajectory.question, trajectory))
    return {"key": trajectory.key} | kept.to_json()


def _recorded(records: RecordFile) -> Iterable[Outcome]:
    for place, row in enumerate(records.rows(), start=2):
        try:
            trajectory = Trajectory.from_json(row)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{records.path}:{place}: not an evaluation record ({error!r})", hint="start again with --fresh"
            ) from error
        yield grade(trajectory)


def macro_average(reports: Mapping[str, Report]) -> dict[str, Any]:
    """The paper's average: every benchmark counts the same, whatever its size."""
    summaries = [report.overall for report in reports.values()]
    if not summaries:
        raise ValueError("an average of no benchmark")
    groups = [(sum(o.em for o in report.outcomes), len(report.outcomes)) for report in reports.values()]
    names = ("em", "f1", "substring", "answer_retrieved", "searches")
    means = {name: sum(getattr(summary, name) for summary in summaries) / len(summaries) for name in names}
    return means | {"em_interval": asdict(mean_interval(groups)), "benchmarks": len(summaries)}
