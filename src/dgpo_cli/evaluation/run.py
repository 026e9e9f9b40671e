"""Ask questions, grade the answers, record both.

Deviations from the reference (DGPO, Search-R1): every question counts (it drops the last incomplete batch), searches
are those that were made (it counts the tag's occurrences, the correction's text included), and an episode whose search
failed is no answer of the model: it is reported apart and asked again by the next call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dgpo_cli.core.figures import percent
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.trajectory import Trajectory, attempts, recorded, refuse_broken_search
from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError
from dgpo_cli.evaluation.outcome import Outcome, grade
from dgpo_cli.evaluation.summary import Report
from dgpo_cli.rewards import exact_match


class RunBatch(Protocol):
    def __call__(self, pairs: Sequence[tuple[Question, int]], /, *, progress: Progress | None) -> Iterable[Trajectory]:
        """Trajectories of (question, sample) pairs, each as soon as it is finished."""
        ...


def evaluate(
    questions: Sequence[Question],
    *,
    run_batch: RunBatch,
    with_turns: Callable[[Trajectory], Trajectory] | None = None,
    samples: int = 1,
    records: RecordFile | None = None,
    progress: Progress | None = None,
) -> Report:
    """Answer the questions of one benchmark, each `samples` times, and grade the answers.

    Every answer is recorded as soon as it is there, and what is recorded is not asked again. The report knows no order
    of records: it is in that of `questions`. `with_turns` reads the turns of records that tell nothing of them.

    Raises InputError for a question that occurs twice, RetrievalError as soon as too many draws failed to search.
    """
    _refuse_repeated(questions)
    wanted = attempts(questions, samples)
    graded: dict[str, Outcome] = {}
    if records is not None:
        graded = {key: outcome for key, outcome in _recorded(records, with_turns) if key in wanted}
    failures: dict[str, str] = {}
    missing = [pair for key, pair in wanted.items() if key not in graded]
    before, right = len(graded), sum(outcome.em for outcome in graded.values())

    def tell(done: int, _: int, /, note: str = "") -> None:
        if progress is not None:
            em = f"EM {percent(right / len(graded))}, " if graded else ""
            progress(before + done, len(wanted), em + note)

    tell(0, len(missing))
    for trajectory in run_batch(missing, progress=tell) if missing else ():
        if trajectory.failed_search is not None:
            failures[trajectory.key] = trajectory.failed_search
            refuse_broken_search(list(failures.values()), len(wanted))
            continue
        graded[trajectory.key] = outcome = grade(trajectory)
        right += outcome.em
        if records is not None:
            records.append(_record(trajectory, outcome))
    return Report.of([graded[k] for k in wanted if k in graded], [failures[k] for k in wanted if k in failures])


def _refuse_repeated(questions: Sequence[Question]) -> None:
    for name, count in Counter(question.key for question in questions).items():
        if count > 1:
            raise InputError(f"question {name!r} occurs {count} times", hint="give each question its own id")


def _record(trajectory: Trajectory, outcome: Outcome) -> dict[str, Any]:
    # Nothing is trained on these tokens, and log-probabilities would be half of the file.
    kept = replace(trajectory, logprobs=None, score=exact_match.score(trajectory.question, trajectory))
    return {"key": trajectory.key, "outcome": outcome.to_json()} | kept.to_json()


def _recorded(
    records: RecordFile, with_turns: Callable[[Trajectory], Trajectory] | None
) -> Iterator[tuple[str, Outcome]]:
    for trajectory in records.made(recorded):
        yield trajectory.key, grade(trajectory if with_turns is None else with_turns(trajectory))
