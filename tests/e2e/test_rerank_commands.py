"""`-o rerank.model=...`: every command that searches reads the best passages again, and what an agent reads changes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import ROLLOUT
from tests.served import served
from tests.tiny_encoder import make_cross_encoder, words_of

from dgpo_cli.core.config import load_toml
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer
from dgpo_cli.models.sources import resolve
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import OpenIndex, open_index
from dgpo_cli.retrieval.rerank import RerankConfig

DEPTH = 8
ROOM = 96  # tokens of an observation, where a quarter of the models' context is the limit
FLAGS = [f"-orollout.{name}={getattr(ROLLOUT, name)}" for name in ROLLOUT.__slots__ if name != "temperature"]


@pytest.fixture(scope="module")
def cross(offline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, and it knows the words of the corpus, so that no two passages are alike to it."""
    passages = open_index(offline.index).passages
    assert passages is not None
    return make_cross_encoder(tmp_path_factory.mktemp("cross"), words=words_of(passages))


@pytest.fixture
def options(cross: Path) -> tuple[str, ...]:
    return "-o", f"rerank.model={cross}", "-o", f"rerank.depth={DEPTH}"


def reranked(offline: Any, cross: Path) -> OpenIndex:
    return open_index(offline.index, rerank=RerankConfig(model=str(cross), depth=DEPTH))


def require_reranked(episodes: Iterable[dict[str, Any]], offline: Any, cross: Path) -> None:
    """Every search found what the cross-encoder likes best, that stands in what the model read, and it is a change."""
    ours, plain = reranked(offline, cross).retriever, open_index(offline.index).retriever
    codec = Codec(load_tokenizer(resolve(str(offline.student))), TINYWORLD)
    moved = 0
    for episode in episodes:
        for call in episode["searches"]:
            (expected,), (before,) = (
                ours.search([call["query"]], ROLLOUT.top_k),
                plain.search([call["query"]], ROLLOUT.top_k),
            )
            assert [hit["id"] for hit in call["hits"]] == [hit.passage.id for hit in expected]
            assert [hit["score"] for hit in call["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
            read = codec.observation_ids([hit.passage for hit in expected], ROOM).ids
            assert f"{list(read)}"[1:-1] in f"{episode['token_ids']}"
            moved += [hit.passage.id for hit in before] != [hit.passage.id for hit in expected]
    assert moved, "no passage moved, which a plain search would have passed too"


def require_told(dgpo: Callable[..., Any], run: Path, offline: Any, cross: Path, options: Any) -> None:
    """What asks or trains the model without the reranker that it was trained with says so."""
    index, train = str(offline.index), str(offline.questions("train"))
    ask = ("eval", "--model", str(run), "--index", index, "--bench", "tinyworld")
    commands = (
        (*ask, "--bench-dir", str(offline.folder / "world"), "--dry-run"),
        ("distill-data", "--teacher", str(run), "--index", index, "--data", train, "--dry-run"),
        ("chat", "--model", str(run), "--index", index),
    )
    for command in commands:
        with pytest.MonkeyPatch.context() as patch:  # nobody asks the chat
            patch.setattr("sys.stdin", io.StringIO(""))
            without, alike = dgpo(*command), dgpo(*command, *options)
        said = " ".join(without.err.split())
        assert f"passages were reranked by {cross.name} when {run} was trained, and are not here" in said
        assert without.status == alike.status == 0 and "reranked" not in alike.err, alike.err


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_search_and_serve(dgpo: Callable[..., Any], offline: Any, cross: Path, options: Any) -> None:
    index, query = str(offline.index), "Who lives in a town ?"
    found = json.loads(dgpo("search", query, "--index", index, "-k", "3", *options, "--json").out)
    expected = reranked(offline, cross).retriever.search([query], 3)[0]
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(hit.passage.id, hit.score) for hit in expected]
    assert found["rerank"] == str(cross)
    plain = json.loads(dgpo("search", query, "--index", index, "-k", "3", "--json").out)
    assert plain["rerank"] is None
    assert [hit["id"] for hit in plain["hits"]] != [hit["id"] for hit in found["hits"]]
    assert plain["observation"] != found["observation"]
    with served(offline.index, *options, "--device", "cpu") as server:
        reply = server.retrieve(queries=[query], topk=3, return_scores=True).json
        assert server.about["digest"] == reranked(offline, cross).digest
    assert [hit["document"]["id"] for hit in reply["result"][0]] == [hit["id"] for hit in found["hits"]]
    unknown = dgpo("search", query, "--index", index, "-o", "rerank.modle=x")
    assert "has no option 'modle'" in unknown.errors[0]


def test_eval(dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, cross: Path, options: Any) -> None:
    (folder / "sets").mkdir()
    (folder / "sets" / "nq.jsonl").write_bytes(offline.questions("train").read_bytes())

    def evaluated(out: str, *options: str) -> dict[str, Any]:
        ended = dgpo(
            *("eval", "--model", str(searcher), "--index", str(offline.index), "--bench", "nq", "--bench-dir", "sets"),
            *("--limit", "20", "--device", "cpu", "--out", out, "--json", *options),
        )
        assert ended.status == 0, ended.err
        found: dict[str, Any] = json.loads(ended.out)["benchmarks"]["nq"]["index"]
        return found

    plain, about = evaluated("plain"), evaluated("reranked", *options)
    assert about["rerank"]["model"] == str(cross)
    assert "rerank" not in plain
    assert about["digest"].startswith(f"{plain['digest']}+")
    require_reranked(records(folder / "reranked" / "nq.jsonl"), offline, cross)


def test_chat(
    dgpo: Callable[..., Any], offline: Any, searcher: Path, cross: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question.text for question in read_questions(offline.questions("train"))[:20]]

    def found(*options: str) -> list[tuple[str, list[str]]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in asked)))
        ended = dgpo(
            *("chat", "--model", str(searcher), "--index", str(offline.index), "--device", "cpu", "--json", *options)
        )
        answers = json.loads(ended.out)["answers"]
        calls = [call for answer in answers for call in answer["searches"]]
        return [(call["query"], [hit["title"] for hit in call["hits"]]) for call in calls]

    ours, other = reranked(offline, cross).retriever, found()
    calls = found(*options)
    assert calls != other
    for query, titles in calls:
        assert titles == [hit.passage.title for hit in ours.search([query], ROLLOUT.top_k)[0]]


def test_distill_data_and_kd(
    dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, cross: Path, options: Any
) -> None:
    made = dgpo(
        *("distill-data", "--teacher", str(searcher), "--index", str(offline.index), "--keep", "all", "--limit", "24"),
        *("--data", str(offline.questions("train")), "--temperature", "0", "--device", "cpu", "--out", "data"),
        *(*FLAGS, *options),
    )
    assert made.status == 0, made.err
    require_reranked(records(folder / "data" / "episodes.jsonl"), offline, cross)

    kd = ("kd", "--student", str(searcher), "--teacher", str(searcher), "--data", "data", "--device", "cpu")
    ended = dgpo(
        *(*kd, "--index", str(offline.index), "--eval-data", str(offline.questions("train")), "--steps", "1"),
        *("--batch-size", "4", "--lr", "1e-6", "--out", "kd", "-oeval_limit=20", *FLAGS, *options),
    )
    assert ended.status == 0, ended.err
    require_reranked(records(folder / "kd" / "validation.jsonl"), offline, cross)
    require_told(dgpo, folder / "kd", offline, cross, options)
    refused = dgpo(*kd, "--out", "none", *options)
    assert refused.errors == [
        "error: rerank.depth has no effect: method kd searches nothing, and there is no eval_data"
    ]


def test_rl(dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, cross: Path, options: Any) -> None:
    ended = dgpo(
        *("rl", "--student", str(searcher), "--teacher", str(offline.teacher), "--index", str(offline.index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("train"))),
        *("--steps", "1", "--batch-size", "4", "--out", "rl", "--device", "cpu", "-oeval_limit=20"),
        *(*FLAGS, *options),
    )
    assert ended.status == 0, ended.err
    assert load_toml(folder / "rl" / "config.toml")["rerank"] == {
        "model": str(cross), "depth": DEPTH, "max_length": 512, "batch_size": 64,
    }  # fmt: skip
    require_reranked(records(folder / "rl" / "validation.jsonl"), offline, cross)
    require_told(dgpo, folder / "rl", offline, cross, options)


def test_index_check_measures_both(dgpo: Callable[..., Any], offline: Any, cross: Path, options: Any) -> None:
    check = ("index", "check", "--index", str(offline.index), "-k", "1,2")
    asked = offline.questions("test")
    found = json.loads(dgpo(*check, "--questions", str(asked), *options, "--json").out)
    plain = json.loads(dgpo(*check, "--questions", str(asked), "--json").out)
    before = {name: plain[name] for name in ("recall", "answer_hit")}
    assert {name: found[name] for name in before} == before
    assert "reranked" not in plain
    assert found["reranked"].pop("model") == str(cross)
    assert found["reranked"] != before

    ours, recall = reranked(offline, cross).retriever, {"1": 0.0, "2": 0.0}
    questions = read_questions(asked)
    for question in questions:
        titles = [hit.passage.title for hit in ours.search([question.text], 2)[0]]
        for k in (1, 2):
            gold = set(question.supporting_titles)
            recall[str(k)] += len(gold & set(titles[:k])) / len(gold) / len(questions)
    assert found["reranked"]["recall"] == pytest.approx(recall)
    shown = dgpo(*check, "--questions", str(asked), *options).out
    assert "recall, reranked" in shown
    assert f"{recall['1']:.1%}".replace("%", " %") in shown
    refused = dgpo(*check, *options)
    assert refused.errors == ["error: -o rerank.model has no effect without questions"]
