"""Dense retrieval with a tiny encoder made here, against an encoder and a search written out by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder
from transformers import AutoModel, AutoTokenizer

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig
from dgpo_cli.retrieval.dense.vectors import open_vectors
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index

PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: "}
LONG = Passage("long", '"Long"\n' + " ".join(["river"] * 60))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def build(tmp_path: Path, encoder_folder: Path) -> Callable[..., Path]:
    corpus = write_corpus(tmp_path / "towns.jsonl", [*TOWNS, LONG])

    def run(**settings: Any) -> Path:
        settings = {"encoder": str(encoder_folder), "max_length": 40, "batch_size": 4} | PREFIXES | settings
        build_index(corpus, tmp_path / "index", retriever="dense", settings=settings, overwrite=True)
        return tmp_path / "index"

    return run


def vector_by_hand(folder: Path, text: str, max_length: int) -> np.ndarray:
    """One text alone, so without padding: mean of its hidden states, divided by its length."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
    normalized: np.ndarray = mean / np.sqrt((mean**2).sum())
    return normalized


def matrix_by_hand(folder: Path, passages: Sequence[Passage]) -> np.ndarray:
    """Rounded to half precision, as an index keeps it."""
    vectors = np.stack([vector_by_hand(folder, f"passage: {p.contents}", 40) for p in passages])
    return vectors.astype(np.float16).astype(np.float32)


def test_vectors_and_ranking_are_those_made_by_hand(build: Callable[..., Path], encoder_folder: Path) -> None:
    opened = open_index(build())
    queries = ["who is the mayor", "novel by Mira Holt", "river in the north"]
    passages = [*TOWNS, LONG]
    matrix = matrix_by_hand(encoder_folder, passages)
    for query, hits in zip(queries, opened.retriever.search(queries, 4), strict=True):
        scores = matrix @ vector_by_hand(encoder_folder, f"query: {query}", 40)
        order = np.argsort(-scores)[:4]
        assert [hit.passage.id for hit in hits] == [passages[row].id for row in order]
        assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=5e-5)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_prefixes_pooling_and_batches(encoder_folder: Path) -> None:
    texts = [p.contents for p in TOWNS]

    def encode(prefix: str = "passage: ", **options: Any) -> np.ndarray:
        return Encoder(EncoderConfig(encoder=str(encoder_folder), max_length=40, **options)).encode(texts, prefix)

    usual = encode()
    assert usual.dtype == np.float32
    assert np.linalg.norm(usual, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-6)
    assert encode(batch_size=2) == pytest.approx(usual, abs=1e-5)
    assert np.abs(encode("query: ") - usual).max() > 0.01
    assert np.abs(encode(pooling="cls") - usual).max() > 0.01


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("plain", {}, ("", "", "mean")),
        ("e5-tiny", {}, ("query: ", "passage: ", "mean")),
        ("one5-x", {}, ("", "", "mean")),
        ("bge", {"1_Pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}, ("", "", "cls")),
        (
            "arctic",
            {"st": {"prompts": {"query": "Q: ", "document": "D: "}}, "1_Pooling": {"pooling_mode_mean_tokens": True}},
            ("Q: ", "D: ", "mean"),
        ),
    ],
)
def test_an_encoder_is_used_as_it_was_trained(
    tmp_path: Path, encoder_folder: Path, name: str, files: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    folder = tmp_path / name
    shutil.copytree(encoder_folder, folder)
    (folder / "1_Pooling").mkdir()
    for file, content in files.items():
        path = folder / ("config_sentence_transformers.json" if file == "st" else "1_Pooling/config.json")
        path.write_text(json.dumps(content))
    encoder = Encoder(EncoderConfig(encoder=str(folder), max_length=40))
    assert tuple(asdict(encoder.conventions).values()) == expected
    given = EncoderConfig(encoder=str(folder), max_length=40, query_prefix="", pooling="mean")
    assert (Encoder(given).conventions.query_prefix, Encoder(given).conventions.pooling) == ("", "mean")


def test_an_encoder_that_pools_in_another_way_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    folder = tmp_path / "last"
    shutil.copytree(encoder_folder, folder)
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_lasttoken": True, "include_prompt": True, "word_embedding_dimension": 16}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    with pytest.raises(ConfigError, match=r"pools by lasttoken.*; known are mean and cls"):
        Encoder(EncoderConfig(encoder=str(folder), max_length=40))


def test_blank_queries_and_large_k(build: Callable[..., Path]) -> None:
    retriever = open_index(build()).retriever
    hits, blank = retriever.search(["mayor", "  "], 50)
    assert (len(hits), blank) == (len(TOWNS) + 1, [])
    assert retriever.search([""], 3) == [[]]


def test_what_is_cut_is_counted(build: Callable[..., Path]) -> None:
    manifest = open_index(build()).manifest
    assert manifest is not None
    assert manifest.state["truncated_passages"] == 1
    assert manifest.state["factory"] == "Flat"
    assert manifest.state["conventions"] == PREFIXES | {"pooling": "mean"}
    assert {"faiss-cpu", "torch", "transformers"} <= manifest.versions.keys()


def test_an_index_of_another_encoder_is_refused(
    build: Callable[..., Path], encoder_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder)
    index = build(encoder=str(folder))
    assert open_index(index).retriever.search(["mayor"], 1)
    make_encoder(folder, seed=1)
    with pytest.raises(RetrievalError, match=r"other .* weights"):
        open_index(index)
    shutil.rmtree(folder)
    with pytest.raises(RetrievalError, match="cannot be loaded"):
        open_index(index)


def test_a_single_changed_weight_changes_the_digest(encoder_folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(encoder_folder)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[-1, -1] += 1e-3
    other = tmp_path / "changed"
    shutil.copytree(encoder_folder, other)
    model.save_pretrained(other)
    digests = [
        Encoder(EncoderConfig(encoder=str(f), max_length=40)).digest() for f in (encoder_folder, other, encoder_folder)
    ]
    assert digests[0] == digests[2] != digests[1]


CHANGES = {
    "case": ("tokenizer.json", lambda held: held | {"normalizer": None}),
    "heads": ("config.json", lambda held: held | {"num_attention_heads": 4}),
    "activation": ("config.json", lambda held: held | {"hidden_act": "relu"}),
}
HARMLESS = {
    "version": ("config.json", lambda held: held | {"transformers_version": "4.0.0"}),
    "form": ("tokenizer.json", lambda held: held),
}


def changed(folder: Path, change: tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    name, make = change
    held = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(make(held), indent=3), encoding="utf-8")


@pytest.mark.parametrize("name", [*CHANGES, *HARMLESS])
def test_an_encoder_that_cuts_or_computes_otherwise_is_another_one(
    build: Callable[..., Path], encoder_folder: Path, tmp_path: Path, name: str
) -> None:
    """Its weights and vocabulary are the same, so their digest is."""
    folder = shutil.copytree(encoder_folder, tmp_path / "mine")
    index = build(encoder=str(folder))
    before = open_index(index).retriever.search(["River IN the North"], 3)
    changed(folder, (CHANGES | HARMLESS)[name])
    if name in CHANGES:
        with pytest.raises(RetrievalError, match="other vectors now"):
            open_index(index)
    else:
        assert open_index(index).retriever.search(["River IN the North"], 3) == before


@pytest.mark.parametrize("name", CHANGES)
def test_a_build_does_not_go_on_with_what_such_an_encoder_made(
    build: Callable[..., Path], encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from dgpo_cli.retrieval.dense import retriever

    folder = shutil.copytree(encoder_folder, tmp_path / "mine")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retriever, "index_vectors", killed)
        with pytest.raises(KeyboardInterrupt):
            build(encoder=str(folder))
    changed(folder, CHANGES[name])
    index = build(encoder=str(folder))
    fresh = Encoder(EncoderConfig(encoder=str(folder), max_length=40))
    wanted = fresh.encode([p.contents for p in [*TOWNS, LONG]], "passage: ")
    assert open_vectors(index, len(wanted)).astype(np.float32) == pytest.approx(wanted, abs=1e-3)


def test_letters_have_the_same_vector_however_they_were_composed(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "e", words=["caf\u00e9", "oslo"])
    encoder = Encoder(EncoderConfig(encoder=str(folder), max_length=40))
    nfc, nfd, other = encoder.encode(["oslo caf\u00e9", "oslo cafe\u0301", "oslo"], "")
    assert nfd.tolist() == pytest.approx(nfc.tolist(), abs=1e-6) and np.abs(nfc - other).max() > 0.01


def test_impossible_settings_are_refused(build: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="48 tokens at most"):
        build(max_length=256)
    with pytest.raises(ConfigError, match="batch_size"):
        build(batch_size=0)
    with pytest.raises(RetrievalError, match="cannot be loaded"):
        build(encoder="/nowhere/encoder")


def test_weights_that_are_pickles_are_not_loaded(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(encoder_folder, folder)
    torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RetrievalError, match="cannot be loaded"):
        Encoder(EncoderConfig(encoder=str(folder), max_length=40))


def test_vectors_that_are_not_numbers_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(encoder_folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(float("nan"))
    broken = tmp_path / "broken"
    shutil.copytree(encoder_folder, broken)
    model.save_pretrained(broken)
    with pytest.raises(RetrievalError, match="not finite"):
        Encoder(EncoderConfig(encoder=str(broken), max_length=40)).encode(["river"], "query: ")


def test_an_encoder_without_some_of_its_weights_is_refused_and_loading_is_silent(
    encoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lacking"
    shutil.copytree(encoder_folder, folder)
    weights = load_file(folder / "model.safetensors")
    poolerless = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(poolerless, folder / "model.safetensors", {"format": "pt"})
    Encoder(EncoderConfig(encoder=str(folder), max_length=40))
    assert capfd.readouterr().err == ""
    poolerless.pop("embeddings.LayerNorm.weight")
    save_file(poolerless, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetrievalError, match=r"lacks 1 weights .*, first embeddings\.LayerNorm"):
        Encoder(EncoderConfig(encoder=str(folder), max_length=40))
