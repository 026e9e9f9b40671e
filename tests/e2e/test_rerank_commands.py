"""`-o rerank.model=...`: every command that searches reads the best passages again, and says so in its records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import ROLLOUT
from tests.served import served
from tests.tiny_encoder import make_cross_encoder

from dgpo_cli.core.config import load_toml
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.rerank import RerankConfig


@pytest.fixture
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross"))


def test_search_and_serve(dgpo: Callable[..., Any], offline: Any, cross: Path) -> None:
    options = ("-o", f"rerank.model={cross}", "-o", "rerank.depth=4")
    index, query = str(offline.index), "Who lives in a town ?"
    found = json.loads(dgpo("search", query, "--index", index, "-k", "3", *options, "--json").out)
    expected = open_index(index, rerank=RerankConfig(model=str(cross), depth=4)).retriever.search([query], 3)[0]
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(hit.passage.id, hit.score) for hit in expected]
    assert found["rerank"] == str(cross)
    assert json.loads(dgpo("search", query, "--index", index, "--json").out)["rerank"] is None
    served_options = (option.replace("=4", "=4") for option in options)
    with served(offline.index, *served_options, "--device", "cpu") as server:
        reply = server.retrieve(queries=[query], topk=3, return_scores=True).json
        assert server.about["digest"] == open_index(index, rerank=RerankConfig(model=str(cross), depth=4)).digest
    assert [hit["document"]["id"] for hit in reply["result"][0]] == [hit["id"] for hit in found["hits"]]
    unknown = dgpo("search", query, "--index", index, "-o", "rerank.modle=x")
    assert "has no option 'modle'" in unknown.errors[0]


def test_eval_and_rl(dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, cross: Path) -> None:
    (folder / "sets").mkdir()
    (folder / "sets" / "nq.jsonl").write_bytes(offline.questions("test").read_bytes())

    def evaluated(out: str, *options: str) -> tuple[dict[str, Any], list[Any]]:
        ended = dgpo(
            *("eval", "--model", str(searcher), "--index", str(offline.index), "--bench", "nq", "--bench-dir", "sets"),
            *("--limit", "4", "--device", "cpu", "--out", out, "--json", *options),
        )
        assert ended.status == 0, ended.err
        header, *records = map(json.loads, (folder / out / "nq.jsonl").read_text().splitlines())
        return json.loads(ended.out)["benchmarks"]["nq"]["index"] | {"header": header}, records

    plain, _ = evaluated("plain")
    about, records = evaluated("reranked", "-o", f"rerank.model={cross}")
    assert about["rerank"]["model"] == str(cross)
    assert "rerank" not in plain
    assert about["digest"].startswith(f"{plain['digest']}+")
    calls = [call for record in records for call in record["searches"] if call["hits"]]
    assert calls
    reranked = open_index(offline.index, rerank=RerankConfig(model=str(cross))).retriever
    for call in calls:
        expected = reranked.search([call["query"]], len(call["hits"]))[0]
        assert [hit["score"] for hit in call["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)

    rollout = [f"-orollout.{name}={getattr(ROLLOUT, name)}" for name in ROLLOUT.__slots__ if name != "temperature"]
    ended = dgpo(
        *("rl", "--student", str(searcher), "--teacher", str(offline.teacher), "--index", str(offline.index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("validation"))),
        *("--steps", "1", "--batch-size", "4", "--out", "rl", "--device", "cpu", "-oeval_questions=2", *rollout),
        *("-o", f"rerank.model={cross}", "-o", "rerank.depth=5"),
    )
    assert ended.status == 0, ended.err
    assert load_toml(folder / "rl" / "config.toml")["rerank"] == {
        "model": str(cross), "depth": 5, "max_length": 512, "batch_size": 64,
    }  # fmt: skip
