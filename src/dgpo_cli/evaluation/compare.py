"""Two evaluations of the same questions, paired: how much one is better, how sure that is, and what else differs.

A difference of two models means something only where all else was alike. What was not is listed, never passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.records import read_jsonl, read_records, to_json
from dgpo_cli.core.run_names import find_run
from dgpo_cli.core.run_record import require_command
from dgpo_cli.core.schema import ANYTHING, FLAG, check, map_of, record
from dgpo_cli.core.types import QUESTION, question_from_json
from dgpo_cli.errors import InputError
from dgpo_cli.evaluation.stats import Interval, mean_interval, mean_paired_difference, paired_difference, share_interval

SCHEMA = "evaluation"
ROLLOUT = (  # in the order of the report; `wave` is left out: it moves rounding only
    "seed", "temperature", "samples", "top_k", "max_turns", "max_new_tokens", "max_observation_tokens",
    "max_prompt_tokens", "max_tokens", "capacity", "stop_repeats", "computed_in",
)  # fmt: skip

_HEADER = record(
    dict.fromkeys(("model", "settings", "index", "questions"), map_of(ANYTHING)), {"protocol": map_of(ANYTHING)}
)
_ROW = record({"question": QUESTION, "score": record({"correct": FLAG})})


@dataclass(frozen=True, slots=True)
class Answers:
    """One benchmark of one side: by question id, the question as it was asked and which draws were right."""

    header: Mapping[str, Any]
    questions: Mapping[str, str]
    right: Mapping[str, Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two evaluations that are compared."""

    path: Path
    finished: bool | None  # None for a record file that lies in no run folder
    benchmarks: Mapping[str, Answers]

    @property
    def model(self) -> Mapping[str, Any]:
        model: Mapping[str, Any] = next(iter(self.benchmarks.values())).header["model"]
        return model


def read_side(given: str, root: Path = Path("runs")) -> Side:
    """An evaluation by its run's name, its folder, or one record file. Raises InputError where there is none."""
    path = Path(given)
    if not path.exists():
        path = root / given if (root / given).is_dir() else find_run(given) or path
    folder = path.parent if path.is_file() else path
    finished = None
    if (folder / "run.json").is_file():
        hint = "evaluate its model with `dgpo eval`, or give a run that did"
        finished = require_command(folder, "eval", hint=hint)["status"] == "finished"
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    read = [_read(file) for file in files if path.is_file() or _is_evaluation(file)]
    if not any(answers.right for _, answers in read):
        raise InputError(
            f"{given} holds no answers of an evaluation", hint="give a run of `dgpo eval` (`dgpo runs` lists them)"
        )
    return Side(path, finished, {name: answers for name, answers in read if answers.right})


def _is_evaluation(file: Path) -> bool:
    return next(read_jsonl(file), (0, {}))[1].get("schema") == SCHEMA


def _read(file: Path) -> tuple[str, Answers]:
    header, rows = read_records(file, SCHEMA)
    check(header, _HEADER, f"{file} does not say how it was made", hint="evaluate again with this version of dgpo")
    name = file.stem
    questions: dict[str, str] = {}
    right: dict[str, list[bool]] = {}
    for line, row in rows:
        check(row, _ROW, f"{file}:{line}: not an evaluation record", hint="evaluate again")
        question = question_from_json(row["question"])
        name = question.qa_set
        questions[question.id] = json.dumps([question.text, question.answers])
        right.setdefault(question.id, []).append(row["score"]["correct"])
    return name, Answers(header, questions, right)


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One side, as the comparison names it."""

    path: str
    model: Mapping[str, Any]
    finished: bool | None  # as in Side


@dataclass(frozen=True, slots=True)
class ComparedSet:
    """One benchmark: EM of both, and B minus A over the questions that both answered."""

    n: int
    em_a: float
    em_a_interval: Interval
    em_b: float
    em_b_interval: Interval
    difference: float
    interval: Interval
    only_a: int  # right, or more often right
    only_b: int
    p_value: float
    dropped_a: int  # questions of A alone
    dropped_b: int
    changed: int  # asked otherwise


@dataclass(frozen=True, slots=True)
class ComparedMean:
    """The mean over benchmarks."""

    em_a: float
    em_a_interval: Interval
    em_b: float
    em_b_interval: Interval
    difference: float
    interval: Interval
    benchmarks: int


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting, other than the model, that differs."""

    setting: str
    a: Any
    b: Any
    benchmarks: list[str]  # where it differs


@dataclass(frozen=True, slots=True)
class Comparison:
    """The object that `dgpo eval --compare A B --json` prints."""

    a: ComparedSide
    b: ComparedSide
    comparable: bool
    settings: list[SettingDifference]
    benchmarks: Mapping[str, ComparedSet]
    avg: ComparedMean


def compare(a: Side, b: Side) -> Comparison:
    """Raises InputError where no question is in both."""
    names = [name for name in a.benchmarks if name in b.benchmarks]
    paired = {name: _paired(a.benchmarks[name], b.benchmarks[name]) for name in names}
    benchmarks = {name: _describe(name, a, b, *shares) for name, shares in paired.items() if shares[0]}
    if not benchmarks:
        raise InputError(f"{a.path} and {b.path} have no question in common", hint="compare runs on the same sets")
    means = [(_means(first), _means(second)) for first, second in paired.values() if first]
    difference, interval = mean_paired_difference(means)
    settings = list(_setting_differences(a, b, names))
    ours = _mean([(one.em_a, one.em_a_interval) for one in benchmarks.values()])
    theirs = _mean([(one.em_b, one.em_b_interval) for one in benchmarks.values()])
    return Comparison(
        a=ComparedSide(str(a.path), dict(a.model), a.finished),
        b=ComparedSide(str(b.path), dict(b.model), b.finished),
        comparable=not settings,
        settings=settings,
        benchmarks=benchmarks,
        avg=ComparedMean(*ours, *theirs, difference, interval, len(benchmarks)),
    )


Shares = Mapping[str, Sequence[bool]]


def _paired(a: Answers, b: Answers) -> tuple[Shares, Shares]:
    """Both sides' draws of the questions that both answered and that read the same."""
    same = [key for key, text in a.questions.items() if b.questions.get(key) == text]
    return {key: a.right[key] for key in same}, {key: b.right[key] for key in same}


def _describe(name: str, a: Side, b: Side, first: Shares, second: Shares) -> ComparedSet:
    ours, theirs = a.benchmarks[name].questions, b.benchmarks[name].questions
    result = paired_difference(_means(first), _means(second))
    return ComparedSet(
        n=result.n,
        em_a=sum(_means(first).values()) / result.n,
        em_a_interval=share_interval([(sum(draws), len(draws)) for draws in first.values()]),
        em_b=sum(_means(second).values()) / result.n,
        em_b_interval=share_interval([(sum(draws), len(draws)) for draws in second.values()]),
        difference=result.difference,
        interval=result.interval,
        only_a=result.worse,
        only_b=result.better,
        p_value=result.p_value,
        dropped_a=len(ours.keys() - theirs.keys()),
        dropped_b=len(theirs.keys() - ours.keys()),
        changed=sum(theirs.get(key, text) != text for key, text in ours.items()),
    )


def _mean(parts: Sequence[tuple[float, Interval]]) -> tuple[float, Interval]:
    return sum(em for em, _ in parts) / len(parts), mean_interval(parts)


def _means(shares: Shares) -> dict[str, float]:
    return {key: sum(draws) / len(draws) for key, draws in shares.items()}


def _setting_differences(a: Side, b: Side, names: Sequence[str]) -> Iterator[SettingDifference]:
    """Settings that are not alike, each with the benchmarks where it differs and what both sides had."""
    if a.benchmarks.keys() != b.benchmarks.keys():
        sets = [", ".join(side.benchmarks) for side in (a, b)]
        yield SettingDifference("question sets", sets[0], sets[1], list(names))
    found: dict[str, SettingDifference] = {}
    for name in names:
        ours, theirs = conditions(a.benchmarks[name].header), conditions(b.benchmarks[name].header)
        for setting, value in ours.items():
            # If neither run records its corpus, they cannot be assumed equal.
            if value != theirs[setting] or (setting == "corpus" and value is None):
                difference = SettingDifference(setting, value, theirs[setting], [])
                found.setdefault(to_json(difference), difference).benchmarks.append(name)
    yield from found.values()


def conditions(header: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of the answers other than the model, from the header of their records; None where it has none.

    Two evaluations can be compared where all of it is the same.
    """
    settings, index, questions = (header.get(name, {}) for name in ("settings", "index", "questions"))
    return {name: settings.get(name) for name in ROLLOUT} | {
        "engine": settings.get("engine", "transformers"),
        "corpus": index.get("corpus_digest"),
        "index": index.get("digest"),
        "questions": questions.get("digest"),
        "limit": questions.get("limit"),
        "date": header.get("protocol", {}).get("date"),
    }
