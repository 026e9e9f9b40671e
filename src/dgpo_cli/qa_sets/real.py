"""Questions about real passages, split into test, validation and training, and the one corpus that they share.

Every set of a folder takes part whose questions carry their paragraphs, or name their supporting passages while the
passages lie next to them; without a folder, sets of the hub. Questions that share a text or the whole of their
supporting passages fall on one side of the split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.text import normalize_answer
from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError
from dgpo_cli.qa_sets import paragraphs
from dgpo_cli.qa_sets.forms import SUFFIXES
from dgpo_cli.qa_sets.load import hub_file, read_questions

SETS = ("hotpotqa", "2wikimultihopqa", "musique", "popqa_hipporag2")
# 1,000 questions of each with their paragraphs, the samples of HippoRAG (arXiv 2405.14831)
HUB, HUB_SETS = "osunlp/HippoRAG_2", ("hotpotqa", "2wikimultihopqa", "musique")


class Files(NamedTuple):
    questions: Path
    corpus: Path | None  # None: the questions carry their paragraphs


@dataclass(frozen=True, slots=True)
class Split:
    """Questions by side; no two sides share a question."""

    test: list[Question]  # in turn from every set, so that the first ones are of all of them
    validation: list[Question]
    training: list[Question]


def files(folder: Path) -> dict[str, Files]:
    """The sets of a folder. Raises InputError if it holds none with its passages."""
    found = {}
    for name in SETS:
        questions, corpus = _file(folder, name), _file(folder, f"corpus_{name}")
        if questions is not None and (corpus is not None or paragraphs.are_carried(questions)):
            found[name] = Files(questions, corpus)
    if not found:
        raise InputError(
            f"{folder} holds no questions with their passages",
            hint=f"put NAME.jsonl and corpus_NAME.jsonl there for one or more of {', '.join(SETS)}; or NAME.json as "
            "HotpotQA, 2WikiMultiHopQA and MuSiQue publish it, with the paragraphs in it",
        )
    return found


def hub_files() -> dict[str, Files]:
    """The sets of the hub, in the local cache. Raises InputError where they cannot be had."""
    what = "questions and passages of"
    return {name: Files(hub_file(HUB, f"{name}.json", f"{what} {name}"), None) for name in HUB_SETS}


def _file(folder: Path, name: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def corpus_rows(sets: Mapping[str, Files]) -> Iterator[dict[str, Any]]:
    """Passages of all sets, with the set's name in their ids. Raises InputError naming file and line."""
    for name, (questions, corpus) in sets.items():
        for row in paragraphs.read(questions, name)[1] if corpus is None else _passages(corpus):
            yield {"id": f"{name}-{row['id']}", "contents": row["contents"]}


def _passages(corpus: Path) -> Iterator[Mapping[str, Any]]:
    for line, row in read_jsonl(corpus):
        if not {"id", "contents"} <= row.keys():
            raise InputError(f"{corpus}:{line}: not a passage", hint='write {"id": ..., "contents": ...}')
        yield row


def split(sets: Mapping[str, Files], *, test: int, validation: int, seed: int) -> Split:
    """`test` and `validation` are numbers of questions of each set, of which a half goes to training at least.

    Questions that name no supporting passage are left out. Raises InputError for a set with fewer than four questions.
    """
    sides: dict[str, list[list[Question]]] = {"test": [], "validation": [], "training": []}
    groups = _groups(_own_ids([q for name, found in sets.items() for q in _supported(name, found)]))
    for name in sets:
        own = [group for group in groups if group[0].qa_set == name]
        random.Random(f"real {seed} {name}").shuffle(own)
        total = sum(map(len, own))
        if total < 4:
            raise InputError(f"{name} has {total} questions that name their passages", hint="give more of them")
        wanted = {"test": min(test, total // 3), "validation": min(validation, total // 8)}
        parts: dict[str, list[Question]] = {side: [] for side in sides}
        for group in own:
            side = next((s for s, n in wanted.items() if len(parts[s]) + len(group) <= n), "training")
            parts[side] += group
        for side, questions in parts.items():
            sides[side].append(questions)
    return Split(**{side: _in_turn(parts) for side, parts in sides.items()})


def _supported(name: str, found: Files) -> list[Question]:
    read = read_questions(found.questions, name) if found.corpus else paragraphs.read(found.questions, name)[0]
    return [
        replace(question, supporting_ids=tuple(f"{name}-{i}" for i in question.supporting_ids))
        for question in read
        if question.supporting_titles and question.supporting_ids
    ]


def _own_ids(questions: Sequence[Question]) -> list[Question]:
    """One file holds questions of all sets; ids that several sets use get the set's name."""
    used = Counter(question.id for question in questions)
    return [q if used[q.id] == 1 else replace(q, id=f"{q.qa_set}-{q.id}") for q in questions]


def _groups(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share a text or all of their supporting passages, directly or through others."""
    group_of: dict[object, int] = {}
    members: dict[int, list[Question]] = {}
    for number, question in enumerate(questions):
        keys = (normalize_answer(question.text), question.gold_keys)
        joined = {group_of[key] for key in keys if key in group_of}
        members[number] = [q for old in sorted(joined) for q in members.pop(old)] + [question]
        for key, old in group_of.items():
            if old in joined:
                group_of[key] = number
        group_of |= dict.fromkeys(keys, number)
    return list(members.values())


def _in_turn(parts: Sequence[Sequence[Question]]) -> list[Question]:
    return [question for question in chain.from_iterable(zip_longest(*parts)) if question is not None]
