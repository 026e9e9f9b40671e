"""Passages to question files: draw, link, write, judge, split; every step is recorded as it is done.

A wave of passages is worked on as a whole, and so is the one in which an earlier call was stopped: what a model writes
may depend on what else is in its batch, so that going on must not make other batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dgpo_cli.core import schema
from dgpo_cli.core.progress import Progress, Steps
from dgpo_cli.core.records import RecordFile, write_jsonl_atomic
from dgpo_cli.core.text import comparable
from dgpo_cli.errors import InputError, RetrievalError
from dgpo_cli.make_questions.candidate import Candidate, Fate, QuestionTask
from dgpo_cli.make_questions.draw import SIDES, DocumentSplit, Drawn, draw
from dgpo_cli.make_questions.judge import by_text, found_by_index
from dgpo_cli.make_questions.links import links
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.open import OpenIndex

RECORDS = "candidates.jsonl"
_Judged = tuple[QuestionTask, Candidate | None, Fate]


class Author(Protocol):
    """Who writes questions, and who then answers them to see whether they can be answered."""

    def write(self, tasks: Sequence[QuestionTask], /, progress: Progress | None = None) -> list[Candidate | Fate]: ...

    def check(self, candidates: Sequence[Candidate], /, progress: Progress | None = None) -> list[Fate | None]:
        """Why each falls, None for one that is kept."""
        ...


@dataclass(slots=True)
class MadeQuestions:
    """The outcomes of all candidates, by hops."""

    passages: int
    fates: dict[int, Counter[Fate]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)  # questions by side

    @property
    def kept(self) -> int:
        return sum(counts[Fate.KEPT] for counts in self.fates.values())

    def to_json(self) -> dict[str, Any]:
        by_hops = {
            str(hops): {fate.name.lower(): counts[fate] for fate in Fate if counts[fate]}
            for hops, counts in sorted(self.fates.items())
        }
        return {"passages": self.passages, "kept": self.kept, "questions": self.files, "fates": by_hops}


def make_questions(
    index: OpenIndex, author: Author, settings: MakeQuestionsSettings, folder: Path, progress: Progress | None = None
) -> MadeQuestions:
    """Write `folder`/train.jsonl, validation.jsonl, test.jsonl, and candidates.jsonl, which records why others fell.

    A side without a question has no file. Raises RetrievalError for an index that does not tell its passages,
    InputError where no question is kept.
    """
    if index.passages is None:
        raise RetrievalError(f"{index.location} is a server, which does not tell its passages", hint="give a folder")
    drawn, split = draw(
        index.passages,
        settings.passages,
        validation=settings.validation,
        test=settings.test,
        seed=settings.seed,
        progress=progress,
    )
    meta = {"settings": asdict(settings), "index": index.digest}
    steps = Steps(progress)
    with RecordFile(folder / RECORDS, key="key", schema="made questions", meta=meta) as records:
        kept = sum(row["fate"] == Fate.KEPT.name for row in records.made(_checked))
        for start in range(0, len(drawn), settings.wave):
            steps(start, len(drawn), f"{kept:,} questions")
            wave = drawn[start : start + settings.wave]
            hops = (1, 2) if settings.hops == "both" else (int(settings.hops),)
            if all(QuestionTask(each, number).key in records.keys for each in wave for number in hops):
                continue
            for task, candidate, fate in _wave(wave, hops, split, index.retriever, author, settings.top_k, steps):
                if task.key not in records.keys:
                    records.append(_record(task, candidate, fate))
                    kept += fate is Fate.KEPT
        steps(len(drawn), len(drawn), f"{kept:,} questions")
        made = _write_files(records.made(_checked), folder, len(drawn))
    if not made.kept:
        (why, number), *_ = sum(made.fates.values(), Counter()).most_common(1)
        change = "more --passages, a larger -k or a stronger --teacher"
        if why is Fate.TOO_LONG:
            change = f"-o max_tokens above {settings.max_tokens}, and a --teacher that can read as many"
        raise InputError(
            f"no question is kept of {len(drawn):,} passages; {number:,} times: {why}",
            hint=f"{folder / RECORDS} holds what was made; give {change}",
        )
    return made


def _wave(
    wave: Sequence[Drawn],
    hops: Sequence[int],
    split: DocumentSplit,
    retriever: Retriever,
    author: Author,
    k: int,
    steps: Steps,
) -> list[_Judged]:
    """What becomes of the questions of a wave, in the order of its passages."""
    tasks = [QuestionTask(each, 1) for each in wave] if 1 in hops else []
    if 2 in hops:
        tasks += [QuestionTask(each, 2, link) for each, link in zip(wave, links(wave, split, retriever), strict=True)]
    fates: dict[str, Fate] = {task.key: Fate.NO_PARTNER for task in tasks if task.hops == 2 and task.link is None}
    made: dict[str, Candidate] = {}
    open_tasks = [task for task in tasks if task.key not in fates]
    for task, written in zip(open_tasks, author.write(open_tasks, steps.inside("written")), strict=True):
        judged = by_text(written) if isinstance(written, Candidate) else written
        if isinstance(written, Candidate):
            made[task.key] = written
        if isinstance(judged, Candidate):
            made[task.key] = judged
        else:
            fates[task.key] = judged
    left = [key for key in made if key not in fates]
    for key, found in zip(left, found_by_index([made[key] for key in left], retriever, k), strict=True):
        if not found:
            fates[key] = Fate.NOT_FOUND
    left = [key for key in left if key not in fates]
    for key, fate in zip(left, author.check([made[key] for key in left], steps.inside("tried")), strict=True):
        fates[key] = fate or Fate.KEPT
    return [(task, made.get(task.key), fates[task.key]) for task in tasks]


def _record(task: QuestionTask, candidate: Candidate | None, fate: Fate) -> dict[str, Any]:
    made = None if candidate is None else candidate.to_json(task.drawn.side)
    return {
        "key": task.key,
        "passage": task.drawn.passage.id,
        "hops": task.hops,
        "side": task.drawn.side,
        "fate": fate.name,
        "question": made,
    }


_ROW = schema.record(
    {
        "fate": schema.one_of(*Fate.__members__),
        "side": schema.one_of(*SIDES),
        "hops": schema.whole(1, 2),
        "question": schema.maybe(schema.record({"question": schema.text(empty=False)})),
    },
    also=lambda row: "a kept one has no `question`" if row["fate"] == "KEPT" and row["question"] is None else "",
)


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    schema.require(row, _ROW)
    return row


def _write_files(rows: Iterator[Mapping[str, Any]], folder: Path, passages: int) -> MadeQuestions:
    """The question files. Of questions with the same words, the first one stays, whatever side it is on."""
    made = MadeQuestions(passages)
    sides: dict[str, list[Any]] = {side: [] for side in SIDES}
    asked: set[str] = set()
    for row in rows:
        fate = Fate[row["fate"]]
        if fate is Fate.KEPT:
            words = comparable(row["question"]["question"])
            if words in asked:
                fate = Fate.DUPLICATE
            else:
                asked.add(words)
                sides[row["side"]].append(row["question"])
        made.fates.setdefault(row["hops"], Counter())[fate] += 1
    for side, questions in sides.items():
        made.files[side] = len(questions)
        if questions:
            write_jsonl_atomic(folder / f"{side}.jsonl", questions)
        else:
            (folder / f"{side}.jsonl").unlink(missing_ok=True)
    return made
