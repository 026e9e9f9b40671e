"""Reranking by a tiny cross-encoder made here, against its scores pair by pair."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_cross_encoder, make_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense import encoder
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig, load_safely
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.rerank import RerankConfig

QUERIES = ["the mayor of Vesapo", "a novel by Mira Holt", " ", "river town"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerank")
    make_cross_encoder(folder / "cross")
    long = Passage("long", '"Long"\n' + "river town " * 60)
    build_index(write_corpus(folder / "c.jsonl", [*TOWNS, long]), folder / "index", settings={"stopwords": "none"})
    return folder


def score_by_hand(folder: Path, query: str, passage: Passage) -> float:
    """One pair alone, so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = f"{passage.title}\n{passage.text}"
    batch = tokenizer(query, text, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        return float(model(**batch).logits[0, 0])


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_best_few_come_in_the_cross_encoders_order(folder: Path, batch_size: int) -> None:
    config = RerankConfig(model=str(folder / "cross"), depth=3, batch_size=batch_size)
    plain, reranked = open_index(folder / "index"), open_index(folder / "index", rerank=config)
    moved = False
    for query, before, after in zip(
        QUERIES, plain.retriever.search(QUERIES, 3), reranked.retriever.search(QUERIES, 2), strict=True
    ):
        scores = {hit.passage.id: score_by_hand(folder / "cross", query, hit.passage) for hit in before}
        expected = sorted(scores, key=lambda name: -scores[name])[:2]
        assert [hit.passage.id for hit in after] == expected, "of the first three only"
        assert [hit.score for hit in after] == pytest.approx([scores[name] for name in expected], abs=1e-5)
        assert [hit.rank for hit in after] == list(range(1, len(after) + 1))
        moved |= expected != [hit.passage.id for hit in before][:2]
    assert moved
    assert reranked.retriever.search([" "], 2) == [[]]
    assert len(reranked.retriever.search(["town river"], 5)[0]) > 3, "depth never hides what was asked for"


def test_what_is_recorded_tells_rerankers_apart(folder: Path, tmp_path: Path) -> None:
    config = RerankConfig(model=str(folder / "cross"))
    plain = open_index(folder / "index").digest
    digests = {
        open_index(folder / "index", rerank=changed).digest
        for changed in (
            config,
            replace(config, depth=7),
            replace(config, max_length=20),
            RerankConfig(model=str(make_cross_encoder(tmp_path / "other", seed=1))),
        )
    }
    assert len(digests) == 4
    assert all(digest.startswith(f"{plain}+") for digest in digests)
    assert open_index(folder / "index", rerank=RerankConfig()).digest == plain
    assert open_index(folder / "index", rerank=replace(config, batch_size=1)).digest in digests


def test_another_tokenizer_is_another_reranker(folder: Path, tmp_path: Path) -> None:
    """The same weights read other pieces in other rows, so that the passages come in another order."""
    other = shutil.copytree(folder / "cross", tmp_path / "other")
    pieces = json.loads((other / "tokenizer.json").read_text())
    vocabulary = pieces["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(pieces))
    digests = [
        open_index(folder / "index", rerank=RerankConfig(model=str(model))).digest
        for model in (folder / "cross", other, shutil.copytree(folder / "cross", tmp_path / "same"))
    ]
    assert digests[0] != digests[1] and digests[0] == digests[2]


def test_what_is_no_reranker_is_refused(folder: Path, tmp_path: Path) -> None:
    def opened(model: Path) -> None:
        open_index(folder / "index", rerank=RerankConfig(model=str(model)))

    with pytest.raises(RetrievalError, match="cannot be loaded"):
        opened(tmp_path / "none")
    with pytest.raises(ConfigError, match="one score for a pair of texts: it has 3"):
        opened(make_cross_encoder(tmp_path / "three", labels=3))
    with pytest.raises(ConfigError, match="it has no head of its own"):
        opened(make_encoder(tmp_path / "encoder"))
    with_code = make_cross_encoder(tmp_path / "code")
    settings = json.loads((with_code / "config.json").read_text()) | {"model_type": "own"}
    settings["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "own.Own")
    (with_code / "config.json").write_text(json.dumps(settings))
    (with_code / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    for refuse in (opened, lambda folder: Encoder(EncoderConfig(encoder=str(folder)))):
        with pytest.raises(RetrievalError, match="cannot be loaded"):
            refuse(with_code)
    assert not (tmp_path / "ran").exists()
    pickled = make_cross_encoder(tmp_path / "pickled")
    model = AutoModelForSequenceClassification.from_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(RetrievalError, match="cannot be loaded"):
        opened(pickled)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(make_cross_encoder(tmp_path / "broken"))
    broken = open_index(folder / "index", rerank=RerankConfig(model=str(tmp_path / "broken")))
    with pytest.raises(RetrievalError, match="not finite"):
        broken.retriever.search(["town"], 1)
    with pytest.raises(ConfigError, match="depth 0"):
        RerankConfig(depth=0)
    with pytest.raises(ConfigError, match="no effect without a model"):
        RerankConfig(depth=7)


@pytest.mark.parametrize(("stored", "times"), [("float32", 1), ("bfloat16", 2)])
def test_weights_that_memory_does_not_hold_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, times: int
) -> None:
    folder = make_cross_encoder(tmp_path / "reranker")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": stored}
    (folder / "config.json").write_text(json.dumps(config))
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(encoder, "free_main", lambda: int(times * size / 0.9) - 9)
    with pytest.raises(ConfigError, match="GiB of memory are free for them"):
        load_safely(AutoModelForSequenceClassification, str(folder), offline=True)
    monkeypatch.setattr(encoder, "free_main", lambda: int(times * size / 0.9) + 9)
    with pytest.raises(pytest.fail.Exception):
        load_safely(AutoModelForSequenceClassification, str(folder), offline=True)
