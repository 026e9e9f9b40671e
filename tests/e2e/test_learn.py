"""From a folder of documents to an agent, with a tiny model: what is made, reused, made again, and told beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.core import recipes
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.load import save_model
from dgpo_cli.qa_sets import read_questions

TOWNS = [f"{a}{b}" for a in ("Ve", "Ka", "Or", "Li") for b in ("sapo", "rimo", "leta", "duna")]


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    for number, town in enumerate(TOWNS):
        text = f"# {town}\n\n{town} is a town of {number + 40} weavers on the river Lun. Ora {town}son was its mayor."
        (folder / f"{town}.md").write_text(text, encoding="utf-8")
    (folder / "rivers.csv").write_text("River,Town\nLun,Vesapo\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tokenizer = bpe_tokenizer(chat=True)
    save_model(folder, qwen(len(tokenizer), positions=2048), tokenizer, DEFAULT)
    (folder / "protocol.json").unlink()
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe with few and short steps."""
    shipped = recipes.shipped

    def made(name: str) -> dict[str, Any]:
        settings = shipped(name)
        settings["world"] |= {"quick_questions": 4}
        settings["questions"] |= {"passages": 16, "test": 0.3}
        settings["rollout"] |= {"max_new_tokens": 160, "max_tokens": 2048, "max_turns": 2, "max_prompt_tokens": 2048}
        settings["demonstrations"] |= {"questions": 8}
        settings["cold-start"] |= {"batch_size": 4}
        return settings

    monkeypatch.setattr("dgpo_cli.offline.project.shipped", made)


@pytest.mark.slow
def test_documents_become_an_agent_and_what_is_done_is_reused(
    dgpo: Any, folder: Path, model: Path, small: None
) -> None:
    write_documents(folder / "texts")
    told = dgpo("learn", "texts", "--student", str(model), "--dry-run")
    assert told.status == 0, told.err
    assert "documents: 17 files (1 .csv, 16 .md)" in told.out and not (folder / "agent").exists()
    ended = dgpo("learn", "texts", "--student", str(model), "--json")
    assert ended.status == 0, ended.err
    made = json.loads(ended.out)
    assert made["reused"] == [] and made["rows"]["cold-start"]["questions"] > 0
    training = read_questions(folder / "agent" / "world" / "train.jsonl")
    test = read_questions(folder / "agent" / "world" / "test.jsonl")
    documents = [{p.rpartition("#")[0] for q in side for p in q.supporting_ids} for side in (training, test)]
    assert documents[0] and documents[1] and not documents[0] & documents[1], "test documents are unseen"
    assert (folder / "agent" / "runs" / "eval-cold-start" / "report.md").is_file()
    again = json.loads(dgpo("learn", "texts", "--student", str(model), "--json").out)
    assert again["reused"] == ["index", "questions", "demonstrations", "cold-start", "eval-cold-start"]
    assert again["rows"] == made["rows"]
    known = dgpo("eval", "--limit", "1", "--dry-run")  # one of the commands that it names: it needs no more words
    assert known.status == 0 and "made" in known.out + known.err, known.err
    (folder / "texts" / "new.md").write_text("# Tarn\n\nTarn is a town.", encoding="utf-8")
    refused = dgpo("learn", "texts", "--student", str(model))
    assert refused.status == 1 and "give --replace" in refused.err and "1 of 18 files were read anew" in refused.err


def test_what_cannot_be_learned_from_is_told_in_one_line(dgpo: Any, folder: Path, small: None) -> None:
    assert "texts is no folder" in dgpo("learn", "texts").err
    (folder / "texts").mkdir()
    assert "holds no usable passage" in dgpo("learn", "texts").err
    (folder / "texts" / "a.txt").write_text("One line.", encoding="utf-8")
    inside = dgpo("learn", "texts", "--out", "texts/agent")
    assert inside.status == 1 and "lies in the folder of documents" in inside.err
    few = dgpo("learn", "texts", "--out", "other")
    assert few.status == 1 and len(few.err.splitlines()) < 8 and "error: " in few.err, few.err
