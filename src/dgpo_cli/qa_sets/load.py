"""Questions from files in FlashRAG's form, or from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.types import Question, question_from_json
from dgpo_cli.errors import InputError
from dgpo_cli.qa_sets.registry import QA_SETS, canonical_name

HUB = "RUC-NLPIR/FlashRAG_datasets"
FORM = '{"id": ..., "question": ..., "golden_answers": [...]}'


def read_questions(path: Path, qa_set: str | None = None) -> list[Question]:
    """Questions of a JSONL file, plain or .gz; `qa_set` defaults to the row's own or the file's name.

    Raises InputError naming file and line; a file without a question is one too.
    """
    name = qa_set or path.name.removesuffix(".gz").removesuffix(".jsonl")
    questions = []
    for line, row in read_jsonl(path):
        try:
            questions.append(_question(row, qa_set or str(row.get("qa_set") or name)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{line}: not a question ({error!r})", hint=f"write lines like {FORM}") from error
    if not questions:
        raise InputError(f"{path} holds no question", hint=f"write lines like {FORM}")
    return questions


def _question(row: Mapping[str, Any], qa_set: str) -> Question:
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise ValueError("empty question")
    answers = row["golden_answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError("golden_answers is not a list of strings")
    return question_from_json(row, qa_set)


def load_questions(
    name: str, *, bench_dir: Path | None = None, split: str | None = None, limit: int | None = None
) -> list[Question]:
    """Questions of a QA set; `split` defaults to the one that is evaluated, `limit` takes the first ones.

    With `bench_dir` they come from NAME.jsonl[.gz] in it (train_NAME.jsonl[.gz] for the train split), otherwise from
    the hub. Raises ConfigError for an unknown set, InputError when the questions cannot be had.
    """
    known = canonical_name(name)
    chosen = split or QA_SETS[known].split
    if bench_dir is not None:
        return read_questions(find_file(bench_dir, known, chosen), known)[:limit]
    if known == "tinyworld":
        raise InputError("tinyworld questions are files", hint="make them with `dgpo quickstart`, then give --bench-dir DIR")
    questions = []
    for place, row in enumerate(_hub_rows(known, chosen)):
        if limit is not None and place >= limit:
            break
        questions.append(_question(row, known))
    return questions


def find_file(bench_dir: Path, name: str, split: str) -> Path:
    """Raises InputError naming the files that were looked for."""
    stem = f"train_{name}" if split == "train" else name
    candidates = [bench_dir / f"{stem}.jsonl", bench_dir / f"{stem}.jsonl.gz"]
    for path in candidates:
        if path.is_file():
            return path
    raise InputError(
        f"no questions of {name} in {bench_dir}", hint=f"expected {candidates[0].name} or {candidates[1].name} there"
    )


def _hub_rows(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(HUB, data_files=f"{name}/{split}.jsonl", split="train", streaming=True)
    except Exception as error:  # the library raises errors of many families for "not reachable"
        raise InputError(
            f"questions of {name} ({split}) are not cached, and {HUB} cannot be reached",
            hint="give files of the same form: --bench-dir DIR",
        ) from error


def training_set(chosen: str, bench_dir: Path | None = None) -> list[Question]:
    """Training questions: comma-separated names of QA sets (their train split) or question files."""
    questions: list[Question] = []
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        if name.endswith((".jsonl", ".jsonl.gz")):
            questions += read_questions(Path(name))
        else:
            questions += load_questions(name, bench_dir=bench_dir, split="train")
    if not questions:
        raise InputError(f"{chosen!r} holds no question", hint="give QA set names or .jsonl files, e.g. --data nq")
    return questions
