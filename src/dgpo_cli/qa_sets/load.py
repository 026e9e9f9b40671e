"""Questions from files, or from the hub."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.compression import plain_name
from dgpo_cli.core.hub import unreachable
from dgpo_cli.core.places import is_file
from dgpo_cli.core.text import is_empty_answer, text_key
from dgpo_cli.core.types import QUESTION_EXTRAS, Question, question_from_json
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.abstention import ABSTENTION, abstains
from dgpo_cli.qa_sets.forms import ENDINGS, FORM, SUFFIXES, Row, at, rows
from dgpo_cli.qa_sets.hub import hub_questions, is_hub_set, set_name
from dgpo_cli.qa_sets.registry import FILE_SETS, HUB, QA_SETS, canonical_name

_log = logging.getLogger(__name__)


def read_questions(path: Path, qa_set: str | None = None, *, answers: bool = True) -> list[Question]:
    """Questions of a file in one of the forms of forms.py; `qa_set` defaults to the row's own or the file's name.

    A question without an id gets one made from its text. Warns of accepted answers that normalize to nothing. Raises
    InputError naming file and line; a file without a question is one too, and so is an id that occurs twice: records
    are kept by id. With `answers` so is a question without an accepted answer, which can only be searched for.
    """
    return questions_of(rows(path), path, qa_set, _stem(path), answers)


def questions_of(
    found: Iterable[Row], path: Path | str, qa_set: str | None, default_set: str, answers: bool = True
) -> list[Question]:
    """As `read_questions`, of rows; `path` is what messages call their place."""
    name = qa_set or default_set
    questions = []
    places: dict[str, str] = {}
    for place, row in found:
        try:
            question = question_of(row, qa_set or str(row.get("qa_set") or name), answers)
        except ValueError as error:
            raise InputError(f"{at(path, place)}: not a question: {error}", hint=f"write lines like {FORM}") from error
        if question.id in places:
            known = f"id {question.id!r}" if "id" in row else "the question, which has no id,"
            raise InputError(
                f"{at(path, place)}: {known} is also on {places[question.id]}", hint="give every question its own id"
            )
        places[question.id] = place
        questions.append(question)
    if not questions:
        raise InputError(f"{path} holds no question", hint=f"write lines like {FORM}")
    _warn_of_empty(path, questions)
    return questions


def _stem(path: Path) -> str:
    plain = plain_name(path)
    return next((plain[: -len(ending)] for ending in ENDINGS if plain.lower().endswith(ending)), plain)


def _warn_of_empty(path: Path | str, questions: Sequence[Question]) -> None:
    empty = [(q.id, answer) for q in questions for answer in q.answers if is_empty_answer(answer)]
    if empty:
        identity, answer = empty[0]
        _log.warning(
            "%s: accepted answers that are nothing but articles and punctuation: %d, the first %r of question %s; "
            "such an answer is right only as it is written, and no passage counts as holding it",
            path, len(empty), answer, identity,
        )  # fmt: skip


_ASKED = schema.record(
    {"question": schema.text(empty=False), "golden_answers": schema.list_of(schema.text(empty=False))},
    {"id": schema.either(schema.text(empty=False), schema.whole())} | dict(QUESTION_EXTRAS),
)
_ANSWERED = schema.record(
    {"golden_answers": schema.list_of(schema.text(empty=False), least=1)}, also=lambda row: _ASKED.fault(row, "")
)


def question_of(row: Mapping[str, Any], qa_set: str, answers_needed: bool = True) -> Question:
    """Raises ValueError, saying what is wrong, if the row is not a question."""
    given = _with_abstention(row)
    given |= {name: _whole(given[name]) for name in ("id", "hops", "supporting_ids") if name in given}
    schema.require(given, _ANSWERED if answers_needed else _ASKED)
    return question_from_json({"id": _made_id(row["question"])} | given, qa_set)


def _whole(value: Any) -> Any:
    """A whole number, alone or in a list, that a table made a float of, as it was."""
    if isinstance(value, list):
        return [_whole(one) if isinstance(one, float) else one for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_abstention(row: Mapping[str, Any]) -> dict[str, Any]:
    """`"unanswerable": true` stands for the answer that says so. Raises ValueError where another one stands there."""
    told = row.get("unanswerable")
    if not isinstance(told, bool | None):
        raise ValueError(f"`unanswerable` is {told!r}, not true or false")
    if not told:
        return dict(row)
    answers = row.get("golden_answers") or []
    if not isinstance(answers, list) or not all(isinstance(answer, str) and abstains(answer) for answer in answers):
        raise ValueError(f"it is unanswerable, and its golden_answers are {answers!r}")
    return dict(row) | {"golden_answers": [ABSTENTION]}


def _made_id(text: str) -> str:
    return hashlib.sha256(text_key(text).encode()).hexdigest()[:16]


def load_questions(
    name: str,
    *,
    bench_dir: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[Question]:
    """Questions of a QA set, of a file if `name` ends in one of SUFFIXES, or of any set of the hub (hub.py).

    `split` defaults to the one that is evaluated. `limit` takes the first ones in file order; with a `seed` as well it
    takes a sample drawn by it, still in file order. With `bench_dir` the questions come from a file of it (see
    `find_file`), otherwise from the hub. Raises ConfigError for an unknown set or split, InputError when the questions
    cannot be had.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no question", hint="give a limit of 1 or more")
    if is_hub_set(name):
        return _limited(questions_of(hub_questions(name), name, None, set_name(name)), limit, seed)
    if _is_file(name):
        return _limited(read_questions(Path(name)), limit, seed)
    known = canonical_name(name)
    chosen = split or QA_SETS[known].split
    if bench_dir is not None:
        path = find_file(bench_dir, known, chosen)
    elif known in FILE_SETS:
        raise InputError(
            f"{known} questions are generated files",
            hint=f"make them with `{FILE_SETS[known]}`, then give --bench-dir DIR",
        )
    else:
        path = _download(known, chosen)
    return _limited(read_questions(path, known), limit, seed)


def name_and_place(asked: str) -> tuple[str, str]:
    """What a set is called in records, and what `load_questions` takes: of a registered set both are its name.

    A file is called as its name without the ending, a set of the hub as its repository. Raises ConfigError otherwise.
    """
    if is_hub_set(asked):
        return set_name(asked), asked
    if _is_file(asked):
        return re.sub(r"[^\w.-]+", "-", _stem(Path(asked))).strip("-.") or "questions", asked
    known = canonical_name(asked)
    return known, known


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIXES) or is_file(name)


def _limited(questions: list[Question], limit: int | None, seed: int | None) -> list[Question]:
    if limit is None or limit >= len(questions):
        return questions
    if seed is None:
        return questions[:limit]
    return [questions[place] for place in sorted(random.Random(seed).sample(range(len(questions)), limit))]


def find_file(bench_dir: Path, name: str, split: str) -> Path:
    """NAME.jsonl, or train_NAME.jsonl for the train split, or another of SUFFIXES; for FILE_SETS also SPLIT.jsonl.

    Raises InputError naming the files that were looked for.
    """
    own_split = QA_SETS[name].split
    stems = [name if split == own_split else f"{split}_{name}"]
    if name in FILE_SETS:
        stems.append(split)
    candidates = [bench_dir / (stem + suffix) for stem in stems for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    state = "" if bench_dir.is_dir() else " (there is no such folder)"
    raise InputError(
        f"no {split} questions of {name} in {bench_dir}{state}",
        hint=f"put one of these there: {', '.join(path.name for path in candidates if '.jsonl' in path.suffixes)}",
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
    return hub_file(HUB, f"{name}/{split}.jsonl", f"questions of {name} ({split})")


def hub_file(repo: str, file: str, what: str) -> Path:
    """A file of a data set of the hub in the local cache. Raises InputError saying why `what` cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    reason = unreachable()
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=reason is not None))
    except (OSError, EntryNotFoundError) as error:
        why = f"are not cached, and {reason}" if reason else f"cannot be had from {repo}: {error}"
        raise InputError(f"{what} {why}", hint="give files of the same form: --bench-dir DIR") from error


def require_asked_of(bench_dir: Path | None, asked: Sequence[str]) -> None:
    """Raises ConfigError for a folder of sets where none of those that are asked is read from it."""
    if bench_dir is not None and asked and all(_is_file(name) or is_hub_set(name) for name in asked):
        raise ConfigError(
            f"bench_dir {bench_dir} has no effect: {', '.join(asked)} names files, and no QA set",
            hint="name sets that are in it, e.g. nq, or leave --bench-dir out",
        )


def training_set(chosen: str, bench_dir: Path | None = None) -> list[Question]:
    """Training questions: comma-separated names of QA sets (their train split) or question files; or one file.

    `bench_dir` has the files of the sets. Raises ConfigError where it has no effect, since no set is named.
    """
    questions: list[Question] = []
    parts = [chosen] if is_file(chosen) else chosen.split(",")  # a comma may stand in the name of a file
    names = [name for part in parts if (name := part.strip())]
    require_asked_of(bench_dir, names)
    for name in names:
        questions += load_questions(name, bench_dir=bench_dir, split="train")
    if not questions:
        raise InputError(f"{chosen!r} holds no question", hint="give QA set names or .jsonl files, e.g. --data nq")
    twice = Counter((question.qa_set, question.id) for question in questions).most_common(1)[0]
    if twice[1] > 1:
        raise InputError(
            f"{chosen!r} holds question {'/'.join(twice[0])} more than once", hint="name every set and file once"
        )
    return questions
