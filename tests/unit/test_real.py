"""The path of a real language model, with a tiny one: what it splits, what it makes, and that it goes on."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.core.hub import unreachable
from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.text import normalize_answer
from dgpo_cli.errors import InputError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.load import save_model
from dgpo_cli.offline.real import RealPath
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.qa_sets.real import HUB, HUB_SETS, files, split
from dgpo_cli.viewing.report import write_report

SHARED = Path(__file__).parents[3] / "shared" / "data"
TOWNS = [f"{a}{b}" for a in ("Ve", "Ka", "Or", "Li", "Tu", "Mo") for b in ("sapo", "rimo", "leta", "duna")]


def write_bench(folder: Path) -> Path:
    """Two sets; every town of a set is asked about once, every second one a second time in other words."""
    folder.mkdir()
    for name in ("hotpotqa", "musique"):
        questions, passages = [], []
        for number, town in enumerate(TOWNS):
            title, mayor = f"{town} {name}", f"Ora {town}"
            passages.append({"id": number, "contents": f'"{title}"\n{title} is a river town. Its mayor is {mayor}.'})
            texts = [f"Who is the mayor of {title}?", f"Of {title}, who is the mayor?"][: 1 + number % 2]
            questions += [
                {"id": f"{number}-{i}", "question": text, "golden_answers": [mayor], "supporting_titles": [title],
                 "supporting_ids": [number]}
                for i, text in enumerate(texts)
            ]  # fmt: skip
        for file, rows in ((name, questions), (f"corpus_{name}", passages)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def bench(tmp_path):
    return write_bench(tmp_path / "bench")


def sides(parts):
    return {"test": parts.test, "validation": parts.validation, "training": parts.training}


def assert_disjoint(parts):
    for kind in (lambda q: normalize_answer(q.text), lambda q: q.gold_keys, lambda q: q.key):
        seen = [{kind(question) for question in questions} for questions in sides(parts).values()]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_no_question_and_no_gold_passages_are_on_two_sides(bench):
    parts = split(files(bench), test=9, validation=4, seed=0)
    assert_disjoint(parts)
    counts = {side: len(questions) for side, questions in sides(parts).items()}
    assert sum(counts.values()) == 72 and 16 <= counts["test"] <= 18 and counts["training"] >= 36
    assert {q.qa_set for q in parts.test[:2]} == {"hotpotqa", "musique"}, "the first ones are of every set"
    again = split(files(bench), test=9, validation=4, seed=1)
    assert [q.key for q in again.test] != [q.key for q in parts.test]


def test_a_chain_of_shared_texts_and_passages_stays_together(bench):
    """a and b share passages, b and c a text: none of the three may be apart."""
    file = bench / "hotpotqa.jsonl"
    named = {"golden_answers": ["x"], "supporting_titles": ["t"]}
    chain = [
        {"id": "a", "question": "First?", "supporting_ids": [1, 2]} | named,
        {"id": "b", "question": "Second?", "supporting_ids": [2, 1]} | named,
        {"id": "c", "question": "second", "supporting_ids": [3]} | named,
    ]
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in chain))
    for seed in range(8):
        parts = split(files(bench), test=9, validation=4, seed=seed)
        where = {q.id: side for side, questions in sides(parts).items() for q in questions if q.id in "abc"}
        assert len(where) == 3 and len(set(where.values())) == 1


@pytest.mark.skipif(not (SHARED / "corpus_hotpotqa.jsonl.gz").is_file(), reason="the real questions are not here")
def test_the_real_questions_are_disjoint():
    world = RealPath.default_recipe()["world"]
    sets = files(SHARED)
    parts = split(sets, test=world["test_questions"], validation=world["validation_questions"], seed=0)
    assert_disjoint(parts)
    assert len(sets) >= 2 and len(parts.test) >= 500 and len(parts.training) >= 1000


def test_a_folder_without_passages(tmp_path):
    with pytest.raises(InputError, match="holds no questions with their passages"):
        files(tmp_path)


def write_hub(cache: Path) -> None:
    """The sets of the hub in its library's cache: 12 questions each, of 24 paragraphs in all."""
    repository, revision = cache / f"datasets--{HUB.replace('/', '--')}", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name in HUB_SETS:
        rows = []
        for one, other in zip(TOWNS[::2], TOWNS[1::2], strict=True):
            pairs = [(f"{town} {name}", f"{town} {name} is a town. Its mayor is Ora {town}.") for town in (one, other)]
            question = {"id": one, "question": f"Who is the mayor of {one} {name}?", "answer": f"Ora {one}"}
            if name == "musique":
                parts = [
                    {"title": t, "paragraph_text": text, "is_supporting": i == 0} for i, (t, text) in enumerate(pairs)
                ]
                rows.append(question | {"answer_aliases": [], "answerable": True, "paragraphs": parts})
            else:
                facts = [[pairs[0][0], 0]]
                rows.append(question | {"supporting_facts": facts, "context": [[t, [text]] for t, text in pairs]})
        (snapshot / f"{name}.json").write_text(json.dumps(rows))


def test_without_a_folder_the_sets_come_from_the_hub(tmp_path, model, monkeypatch, dgpo):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unreachable.cache_clear()
    for more in ((), ("--dry-run",)):
        ended = dgpo("quickstart", "--real", "--out", str(tmp_path / "out"), *more)
        assert ended.status == 1 and "questions and passages of hotpotqa are not cached, and HF_HUB_OFF" in ended.err
        assert "--bench-dir DIR" in ended.err and "Traceback" not in ended.err
    write_hub(tmp_path / "hub")
    assert dgpo("quickstart", "--real", "--dry-run").status == 0
    work, said = path_of(tmp_path / "out", None, model)
    work.prepare()
    assert said == [
        "index: 72 passages of hotpotqa, 2wikimultihopqa, musique; questions: 21 train, 3 validation, 12 test"
    ]
    test = read_questions(tmp_path / "out" / "world" / "test.jsonl")
    passages = {row["id"]: row["contents"] for _, row in read_jsonl(tmp_path / "out" / "world" / "corpus.jsonl")}
    for question in test:
        (gold,) = question.supporting_ids
        assert question.answers[0] in passages[gold] and passages[gold].startswith(f'"{question.supporting_titles[0]}"')
    work.prepare()
    assert "done before" in said[-1]
    unreachable.cache_clear()


# --- the path -------------------------------------------------------------------------------------------------------


def small(model: Path) -> dict:
    """The recipe with few and short steps, at rates at which a tiny model with random weights learns something."""
    settings = {name: dict(table) for name, table in RealPath.default_recipe().items()}
    settings["world"] |= {"student": str(model), "test_questions": 6, "validation_questions": 4, "quick_questions": 6,
                          "raw_questions": 4}  # fmt: skip
    settings["rollout"] |= {
        "max_new_tokens": 160,
        "wave": 4,
        "max_tokens": 2048,
        "max_turns": 2,
        "max_prompt_tokens": 2048,
    }
    settings["demonstrations"] |= {"questions": 16}
    settings["student"] |= {"demonstrations": 4}
    settings["kd_longer"] |= {"steps": 2, "batch_size": 2}
    settings["rl"] |= {"steps": 2, "batch_size": 2, "eval_every": 2, "eval_limit": 2, "save_every": 1}
    for table in ("cold-start", "teacher"):
        settings[table] |= {"batch_size": 4}
    return settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    tokenizer = bpe_tokenizer(chat=True)
    save_model(folder, qwen(len(tokenizer), positions=2048), tokenizer, DEFAULT)
    (folder / "protocol.json").unlink()
    return folder


def path_of(folder: Path, bench: Path | None, model: Path, bar=None):
    said = []
    silent = nullcontext(lambda *_: None)
    work = RealPath(folder, bench, seed=0, device="cpu", say=said.append, bar=bar or (lambda *_: silent),
                    settings=small(model))  # fmt: skip
    return work, said


class Killed(BaseException):
    pass


def killer(after: int):
    """Bars that end everything at the progress call of that number, as a kill would."""
    calls = []

    def update(*_):
        calls.append(1)
        if len(calls) == after:
            raise Killed

    return lambda *_: nullcontext(update)


def figures(result):
    return result.rows


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "best" / "model.safetensors")


@pytest.mark.slow
def test_killed_at_any_moment_the_short_path_ends_the_same(tmp_path, bench, model):
    whole, _ = path_of(tmp_path / "whole", bench, model)
    expected = whole.run()
    assert set(expected.rows) == {"raw", "cold-start"} and expected.rows["raw"].questions == 6
    for after in (1, 3, 2, 4):  # progress calls of that attempt; each goes on where the one before was killed
        work, _ = path_of(tmp_path / "killed", bench, model, killer(after))
        with pytest.raises(Killed):
            work.run()
    work, said = path_of(tmp_path / "killed", bench, model)
    found = work.run()
    assert figures(found) == figures(expected)
    first, second = weights(tmp_path / "whole/runs/cold-start"), weights(tmp_path / "killed/runs/cold-start")
    assert all(torch.equal(first[name], second[name]) for name in first)
    page = write_report([tmp_path / "killed/runs/eval-cold-start"], tmp_path / "report.html", questions=6)
    assert page.questions == 6
    again, said = path_of(tmp_path / "killed", bench, model)
    assert figures(again.run()) == figures(expected) and any("cold-start: done before" in line for line in said)


@pytest.mark.slow
def test_the_longer_path_has_every_row(tmp_path, bench, model):
    work, _ = path_of(tmp_path / "out", bench, model)
    result = work.ladder()
    assert list(result.rows) == ["raw", "cold-start", "teacher", "student", "kd_longer", "ppo", "dgpo_k1", "dgpo"]
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["paired"]["dgpo - student"]["n"] == result.rows["dgpo"].questions
    assert record["paired"]["teacher - raw"]["n"] == 4, "the raw model is asked fewer questions"
