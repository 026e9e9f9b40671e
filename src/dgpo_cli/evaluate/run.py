"""Ask questions, grade the answers, record both.

Deviations from the reference (DGPO, Search-R1): every question counts (it drops the last incomplete batch), searches
are those that were made (it counts the tag's occurrences, the correction's text included), and an episode whose search
failed is no answer of the model: it is reported apart and asked again by the next call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.types import Question, Trajectory, attempt_key, refuse_broken_search
from dgpo_cli.errors import InputError
from dgpo_cli.evaluate.outcome import Decode, Outcome, grade
from dgpo_cli.evaluate.summary import Report
from dgpo_cli.rewards import exact_match

RunBatch = Callable[[Sequence[tuple[Question, int]]], Iterable[Trajectory]]
"""Trajectories of (question, sample) pairs."""


def evaluate(
    questions: Sequence[Question],
    *,
    run_batch: RunBatch,
    decode: Decode,
    window: int,
    samples: int = 1,
    records: RecordFile | None = None,
    progress: Progress | None = None,
) -> Report:
    """Answer the questions of one benchmark, each `samples` times, in fixed windows, and grade the answers.

    Records that are there already are not asked again; a window that was left incomplete is run again as a whole, so
    that an interrupted evaluation ends with the same answers as an undisturbed one. Raises InputError for a question
    that occurs twice, RetrievalError when too many of the draws fail to search.
    """
    _refuse_repeated(questions)
    pairs = [(question, sample) for question in questions for sample in range(samples)]
    keys = [attempt_key(question, sample) for question, sample in pairs]
    wanted = set(keys)
    graded: dict[str, Outcome] = {}
    if records is not None:
        graded = {key: outcome for key, outcome in _recorded(records, decode) if key in wanted}
    failures: dict[str, str] = {}
    for start in range(0, len(pairs), window):
        missing = {key for key in keys[start : start + window] if key not in graded}
        if missing:
            for trajectory in run_batch(pairs[start : start + window]):
                if trajectory.key not in missing:
                    continue
                if trajectory.failed_search is not None:
                    failures[trajectory.key] = trajectory.failed_search
                    continue
                graded[trajectory.key] = outcome = grade(trajectory, decode)
                if records is not None:
                    records.append(_record(trajectory, outcome))
        refuse_broken_search(list(failures.values()), len(pairs))
        if progress is not None:
            progress(min(start + window, len(pairs)), len(pairs))
    return Report.of([graded[k] for k in keys if k in graded], [failures[k] for k in keys if k in failures])


def _refuse_repeated(questions: Sequence[Question]) -> None:
    for name, count in Counter(question.key for question in questions).items():
        if count > 1:
            raise InputError(f"question {name!r} occurs {count} times", hint="give each question its own id")


def _record(trajectory: Trajectory, outcome: Outcome) -> dict[str, Any]:
    # Nothing is trained on these tokens, and log-probabilities would be half of the file.
    kept = replace(trajectory, logprobs=None, score=exact_match.score(trajectory.question, trajectory))
    return {"key": trajectory.key, "outcome": outcome.to_json()} | kept.to_json()


def _recorded(records: RecordFile, decode: Decode) -> Iterator[tuple[str, Outcome]]:
    for place, row in enumerate(records.rows(), start=2):
        try:
            trajectory = Trajectory.from_json(row)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{records.path}:{place}: not an evaluation record ({error!r})", hint="start again with --fresh"
            ) from error
        yield trajectory.key, grade(trajectory, decode)
