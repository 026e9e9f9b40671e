"""BM25's settings by questions, over passages where one setting alone finds what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.retrieval_corpora import write_lines

from dgpo_cli.core.types import Question
from dgpo_cli.evaluation import tune as module
from dgpo_cli.evaluation.tune import tune
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import OpenIndex, open_index

ANIMALS = ("badger", "otter", "falcon", "beetle", "lizard", "heron", "weasel", "rabbit", "turtle", "pigeon")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenIndex:
    """Passages name an animal in the singular; a decoy for each holds the other words of its question."""
    monkeypatch.setattr(module, "K1", (1.5,))
    monkeypatch.setattr(module, "B", (0.75,))
    rows: list[dict[str, Any]] = []
    for animal in ANIMALS:
        rows.append({"id": animal, "contents": f'"{animal}"\nThe {animal} sleeps by day in a burrow.'})
        rows.append(
            {"id": f"decoy {animal}", "contents": f'"Many"\nWhere many eat, they eat much of {animal[0]} there.'}
        )
    build_index(write_lines(tmp_path / "animals.jsonl", rows), tmp_path / "animals")
    return open_index(tmp_path / "animals")


def questions() -> list[Question]:
    return [
        Question(animal, f"Where do many {animal}s eat?", (animal,), "animals", supporting_ids=(animal,))
        for animal in ANIMALS
    ]


def test_the_stemmer_is_chosen_where_words_are_inflected_and_its_gain_is_of_other_questions(index: OpenIndex) -> None:
    found = tune(index, questions(), 1, seed=0, progress=None)
    assert found.settings["stemmer"] == "english"
    assert found.chosen_on + found.tested_on == len(ANIMALS) and min(found.chosen_on, found.tested_on) > 1
    assert (found.before, found.after, found.measure) == (0.0, 1.0, "recall")
    assert found.gain.difference == 1.0 and found.gain.n == found.tested_on
    assert [share for _, share in found.tried] == sorted((share for _, share in found.tried), reverse=True)
    assert tune(index, questions(), 1, seed=0, progress=None) == found


def test_unanswerable_questions_are_left_out(index: OpenIndex) -> None:
    hard = [
        Question(f"{animal} hard", "Where?", ("not in the documents",), "animals", supporting_ids=("gone",))
        for animal in ANIMALS
    ]
    assert tune(index, questions() + hard, 1, seed=0, progress=None) == tune(
        index, questions(), 1, seed=0, progress=None
    )


def test_the_index_stays_as_it_is_where_nothing_is_better(index: OpenIndex) -> None:
    asked = [
        Question(a, f"Which {a} sleeps by day in a burrow?", (a,), "animals", supporting_ids=(a,)) for a in ANIMALS
    ]
    found = tune(index, asked, 1, seed=0, progress=None)
    assert (found.settings, found.before, found.gain.difference) == ({}, 1.0, 0.0)


def test_the_command_names_the_build_and_leaves_the_index(
    dgpo: Callable[..., Any], folder: Path, index: OpenIndex
) -> None:
    rows = [{"id": q.id, "question": q.text, "golden_answers": [q.id], "supporting_ids": [q.id]} for q in questions()]
    write_lines(folder / "q.jsonl", rows)
    digest = index.digest
    argv = ["index", "tune", "--index", index.location, "--questions", "q.jsonl", "-k", "1"]
    ended = dgpo(*argv)
    assert ended.status == 0, ended.err
    assert "0.0 % as it is, 100.0 % with the best; +100.0" in " ".join(ended.out.split())
    assert "dgpo index CORPUS -o stemmer=english" in ended.out
    told = json.loads(dgpo(*argv, "--json").out)
    assert told["settings"]["stemmer"] == "english" and told["after"] == 1.0
    assert open_index(index.location).digest == digest


@pytest.mark.parametrize(("rows", "k", "says"), [(1, "5", "1 questions cannot be halved"), (4, "0", "-k 0 leaves")])
def test_bad_input_is_one_line(
    dgpo: Callable[..., Any], folder: Path, index: OpenIndex, rows: int, k: str, says: str
) -> None:
    write_lines(folder / "q.jsonl", [{"id": str(n), "question": "Who?", "golden_answers": ["x"]} for n in range(rows)])
    ended = dgpo("index", "tune", "--index", index.location, "--questions", "q.jsonl", "-k", k)
    assert ended.status == 1 and len(ended.errors) == 1 and says in ended.errors[0], ended.err
