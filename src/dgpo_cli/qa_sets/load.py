"""Questions from files in FlashRAG's form, or from the hub."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core.compression import plain_name
from dgpo_cli.core.hub import unreachable
from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.types import Question, question_from_json
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.qa_sets.registry import HUB, QA_SETS, canonical_name

FORM = '{"id": ..., "question": ..., "golden_answers": [...]}'
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def read_questions(path: Path, qa_set: str | None = None) -> list[Question]:
    """Questions of a JSONL file, plain, .gz or .zst; `qa_set` defaults to the row's own or the file's name.

    Raises InputError naming file and line; a file without a question is one too, and so is an id that occurs twice:
    records are kept by id.
    """
    name = qa_set or plain_name(path).removesuffix(".jsonl")
    questions = []
    lines: dict[str, int] = {}
    for line, row in read_jsonl(path):
        try:
            question = _question(row, qa_set or str(row.get("qa_set") or name))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}:{line}: not a question: {what}", hint=f"write lines like {FORM}") from error
        if question.id in lines:
            raise InputError(
                f"{path}:{line}: id {question.id!r} is also on line {lines[question.id]}",
                hint="give every question its own id",
            )
        lines[question.id] = line
        questions.append(question)
    if not questions:
        raise InputError(f"{path} holds no question", hint=f"write lines like {FORM}")
    return questions


def _question(row: Mapping[str, Any], qa_set: str) -> Question:
    """Raises KeyError, TypeError or ValueError, saying what is wrong, if the row is not a question."""
    identity, text, answers = row["id"], row["question"], row["golden_answers"]
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError("the id is neither text nor a number")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the question is empty or not text")
    if not _is_texts(answers) or not answers:
        raise ValueError("golden_answers is not a list of at least one text")
    if not _is_texts(row.get("supporting_titles") or []):
        raise ValueError("supporting_titles is not a list of texts")
    if not isinstance(row.get("supporting_ids") or [], list):
        raise ValueError("supporting_ids is not a list")
    hops = row.get("hops")
    if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int)):
        raise ValueError("hops is not a whole number")
    return question_from_json(row, qa_set)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def load_questions(
    name: str,
    *,
    bench_dir: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[Question]:
    """Questions of a QA set, or of a file if `name` ends in one of SUFFIXES.

    `split` defaults to the one that is evaluated. `limit` takes the first ones in file order; with a `seed` as well it
    takes a sample drawn by it, still in file order. With `bench_dir` the questions come from a file of it (see
    `find_file`), otherwise from the hub. Raises ConfigError for an unknown set or split, InputError when the questions
    cannot be had.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no question", hint="give a limit of 1 or more")
    if name.endswith(SUFFIXES):
        return _limited(read_questions(Path(name)), limit, seed)
    known = canonical_name(name)
    chosen = split or QA_SETS[known].split
    if bench_dir is not None:
        path = find_file(bench_dir, known, chosen)
    elif known == "tinyworld":
        raise InputError(
            "tinyworld questions are generated files",
            hint="make them with `dgpo quickstart`, then give --bench-dir DIR",
        )
    else:
        path = _download(known, chosen)
    return _limited(read_questions(path, known), limit, seed)


def _limited(questions: list[Question], limit: int | None, seed: int | None) -> list[Question]:
    if limit is None or limit >= len(questions):
        return questions
    if seed is None:
        return questions[:limit]
    return [questions[place] for place in sorted(random.Random(seed).sample(range(len(questions)), limit))]


def find_file(bench_dir: Path, name: str, split: str) -> Path:
    """NAME.jsonl[.gz], or train_NAME.jsonl[.gz] for the train split; for tinyworld also SPLIT.jsonl, as it is written.

    Raises InputError naming the files that were looked for.
    """
    own_split = QA_SETS[name].split
    stems = [name if split == own_split else f"{split}_{name}"]
    if name == "tinyworld":
        stems.append(split)
    candidates = [bench_dir / (stem + suffix) for stem in stems for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    state = "" if bench_dir.is_dir() else " (there is no such folder)"
    raise InputError(
        f"no {split} questions of {name} in {bench_dir}{state}",
        hint=f"put one of these there: {', '.join(path.name for path in candidates)}",
    )


def _download(name: str, split: str) -> Path:
    """The hub's file in the local cache; offline, the one that is cached already.

    The file is read by us, as any other: the rows' free-form metadata has no schema that a table of them could have.
    """
    if split not in QA_SETS[name].splits:
        raise ConfigError(
            f"{name} has no {split} split",
            hint=f"it has {', '.join(QA_SETS[name].splits)}; or give files: --bench-dir DIR",
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    reason = unreachable()
    try:
        file = hf_hub_download(HUB, f"{name}/{split}.jsonl", repo_type="dataset", local_files_only=reason is not None)
    except (OSError, EntryNotFoundError) as error:
        what = f"are not cached, and {reason}" if reason else f"cannot be had from {HUB}: {error}"
        raise InputError(
            f"questions of {name} ({split}) {what}", hint="give files of the same form: --bench-dir DIR"
        ) from error
    return Path(file)


def training_set(chosen: str, bench_dir: Path | None = None) -> list[Question]:
    """Training questions: comma-separated names of QA sets (their train split) or question files."""
    questions: list[Question] = []
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        questions += load_questions(name, bench_dir=bench_dir, split="train")
    if not questions:
        raise InputError(f"{chosen!r} holds no question", hint="give QA set names or .jsonl files, e.g. --data nq")
    twice = Counter((question.qa_set, question.id) for question in questions).most_common(1)[0]
    if twice[1] > 1:
        raise InputError(
            f"{chosen!r} holds question {'/'.join(twice[0])} more than once", hint="name every set and file once"
        )
    return questions
