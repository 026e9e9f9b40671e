"""Questions from files and from a hub cache made here; names, splits, limits, and what is refused."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from dgpo_cli.core.types import Question, question_to_json
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.qa_sets import QA_SETS, SEVEN, TRAIN_SETS, canonical_name, load_questions, read_questions, training_set

GOOD = {"id": "q1", "question": "who?", "golden_answers": ["Mira Holt", "Holt"]}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packers = {".gz": gzip.compress, ".zst": partial(pyarrow.Codec("zstd").compress, asbytes=True)}
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


def numbered(count: int, prefix: str = "q") -> list[dict[str, Any]]:
    return [GOOD | {"id": f"{prefix}{n}"} for n in range(count)]


def test_the_seven_sets_and_their_sizes() -> None:
    assert SEVEN == ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
    # The published merged test file has 51,713 rows; its row ranges are those of these sizes.
    ends, end = [], 0
    for name in SEVEN:
        end += QA_SETS[name].size
        ends.append(end - 1)
    assert ends == [3609, 14922, 29189, 36594, 49170, 51587, 51712]
    assert [QA_SETS[name].split for name in SEVEN] == ["test", "test", "test", "dev", "dev", "dev", "test"]
    assert all("train" in QA_SETS[name].splits for name in TRAIN_SETS)


@pytest.mark.parametrize(
    ("given", "name"), [("2wiki", "2wikimultihopqa"), ("twowiki", "2wikimultihopqa"), ("nq", "nq")]
)
def test_names_and_aliases(given: str, name: str) -> None:
    assert canonical_name(given) == name


def test_an_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown QA set 'hotpot_qa'") as error:
        load_questions("hotpot_qa", bench_dir=Path("anywhere"))
    assert "did you mean hotpotqa?" in (error.value.hint or "")
    assert all(name in (error.value.hint or "") for name in SEVEN)


def test_a_row_becomes_a_question_and_back(tmp_path: Path) -> None:
    row = GOOD | {"supporting_titles": ["Vesapo"], "supporting_ids": [3, "4"], "hops": 2, "metadata": {"x": [1]}}
    path = write(tmp_path / "musique.jsonl.zst", row, GOOD | {"id": 2})
    assert load_questions(str(path)) == read_questions(path)
    first, second = read_questions(path)
    assert first == Question("q1", "who?", ("Mira Holt", "Holt"), "musique", 2, ("Vesapo",), ("3", "4"))
    assert second == Question("2", "who?", ("Mira Holt", "Holt"), "musique")
    again = write(tmp_path / "copy.jsonl", question_to_json(first))
    assert read_questions(again) == [first], "a written question keeps its set"
    assert read_questions(again, "nq")[0].qa_set == "nq"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": None}, "`id` is None"),
        ({"id": True}, "`id` is True"),
        ({"question": "  "}, "`question` is '  ', not a non-empty text"),
        ({"question": ["who?"]}, "`question` is a list"),
        ({"golden_answers": []}, "golden_answers"),
        ({"golden_answers": "Holt"}, "golden_answers"),
        ({"golden_answers": [1]}, "golden_answers"),
        ({"supporting_titles": "Vesapo"}, "supporting_titles"),
        ({"supporting_ids": "3"}, "supporting_ids"),
        ({"golden_answers": ["Holt", ""]}, r"`golden_answers\[1\]` is '', not a non-empty text"),
        ({"golden_answers": [" "]}, r"`golden_answers\[0\]`"),
        ({"golden_answers": None}, "golden_answers"),
        ({"supporting_ids": [{}]}, r"supporting_ids\[0\]"),
        ({"hops": -1}, "hops"),
        ({"hops": "two"}, "hops"),
        ({"hops": 2.5}, "hops"),
        ({"hops": True}, "hops"),
        ({"hops": float("nan")}, "hops"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write(tmp_path / "nq.jsonl", GOOD, GOOD | {"id": "q2"} | change)
    with pytest.raises(InputError, match=f"nq.jsonl:2: not a question: .*{problem}"):
        read_questions(path)


@pytest.mark.parametrize("field", ["question", "golden_answers"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(InputError, match=f"nq.jsonl:1: not a question: `{field}` is missing"):
        read_questions(write(tmp_path / "nq.jsonl", row))


def test_files_without_questions_and_ids_that_occur_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no question"):
        read_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match=r"nq\.jsonl:3: id 'q1' is also on line 1"):
        read_questions(write(tmp_path / "nq.jsonl", GOOD, GOOD | {"id": "q2"}, GOOD))
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        read_questions(tmp_path / "none.jsonl")


def test_files_of_a_bench_dir(tmp_path: Path) -> None:
    write(tmp_path / "nq.jsonl.gz", *numbered(3))
    write(tmp_path / "train_nq.jsonl", *numbered(4, "t"))
    write(tmp_path / "2wikimultihopqa.jsonl", GOOD)
    assert [q.id for q in load_questions("nq", bench_dir=tmp_path)] == ["q0", "q1", "q2"]
    assert [q.id for q in load_questions("nq", bench_dir=tmp_path, split="test")] == ["q0", "q1", "q2"]
    assert [q.id for q in load_questions("nq", bench_dir=tmp_path, split="train")] == ["t0", "t1", "t2", "t3"]
    assert load_questions("2wiki", bench_dir=tmp_path)[0].qa_set == "2wikimultihopqa"
    with pytest.raises(InputError, match="no train questions of hotpotqa") as error:
        load_questions("hotpotqa", bench_dir=tmp_path, split="train")
    assert "train_hotpotqa.jsonl, train_hotpotqa.jsonl.gz" in (error.value.hint or "")
    with pytest.raises(InputError, match="there is no such folder"):
        load_questions("nq", bench_dir=tmp_path / "none")


def test_tinyworld_reads_the_files_of_its_folder(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", GOOD | {"id": split, "hops": 2})
    assert [
        load_questions("tinyworld", bench_dir=tmp_path, split=s)[0].id for s in ("train", "validation", "test")
    ] == [
        "train",
        "validation",
        "test",
    ]
    assert load_questions("tinyworld", bench_dir=tmp_path)[0] == Question(
        "test", "who?", ("Mira Holt", "Holt"), "tinyworld", hops=2
    )
    with pytest.raises(InputError, match="generated") as error:
        load_questions("tinyworld")
    assert "dgpo quickstart" in (error.value.hint or "")


def test_limits_take_the_first_or_a_seeded_sample_in_file_order(tmp_path: Path) -> None:
    path = str(write(tmp_path / "own.jsonl", *numbered(50)))
    everything = load_questions(path)
    assert everything[0].qa_set == "own"
    assert load_questions(path, limit=5) == everything[:5]
    assert load_questions(path, limit=99, seed=1) == everything
    sample = load_questions(path, limit=10, seed=1)
    places = [everything.index(question) for question in sample]
    assert len(set(places)) == 10
    assert places == sorted(places) != list(range(10))
    assert load_questions(path, limit=10, seed=1) == sample != load_questions(path, limit=10, seed=2)
    with pytest.raises(ConfigError, match="leaves no question"):
        load_questions(path, limit=0)


def test_training_sets_are_train_splits_and_files(tmp_path: Path) -> None:
    write(tmp_path / "train_nq.jsonl", *numbered(2, "n"))
    write(tmp_path / "train_hotpotqa.jsonl", *numbered(2, "n"))
    own = write(tmp_path / "own.jsonl", GOOD)
    chosen = training_set(f"nq, hotpotqa,{own}", bench_dir=tmp_path)
    assert [(q.qa_set, q.id) for q in chosen] == [
        ("nq", "n0"),
        ("nq", "n1"),
        ("hotpotqa", "n0"),
        ("hotpotqa", "n1"),
        ("own", "q1"),
    ]
    with pytest.raises(InputError, match="nq/n0 more than once"):
        training_set("nq,nq", bench_dir=tmp_path)
    with pytest.raises(InputError, match="holds no question"):
        training_set(" , ", bench_dir=tmp_path)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network. Returns the folder of the data set's one revision in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "datasets--RUC-NLPIR--FlashRAG_datasets"
    revision = "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


def test_the_hubs_files_are_read_from_its_cache_when_offline(hub_cache: Path) -> None:
    # Free-form metadata that differs from row to row, as in the published files.
    rows = (GOOD | {"metadata": {"a": 1}}, GOOD | {"id": "q2", "metadata": {"a": ["x"], "b": None}})
    write(hub_cache / "nq" / "test.jsonl", *rows)
    assert [q.id for q in load_questions("nq")] == ["q1", "q2"]
    assert load_questions("nq", limit=1)[0].qa_set == "nq"


def test_what_is_not_cached_is_one_clear_error(hub_cache: Path) -> None:
    with pytest.raises(InputError, match=r"questions of musique \(dev\) are not cached") as error:
        load_questions("musique")
    assert "--bench-dir" in (error.value.hint or "")


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="popqa has no train split") as error:
        load_questions("popqa", split="train")
    assert "it has test" in (error.value.hint or "")
