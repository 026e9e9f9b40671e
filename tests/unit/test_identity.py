"""What makes two runs the same work: settings and contents, never places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dgpo_cli.agent.identity import contents
from dgpo_cli.core.places import portable
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.contents import folder_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "model"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "protocol.json"):
        (folder / name).write_text(name)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    (folder / "README.md").write_text("a card")
    return folder


READ = [
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "protocol.json", "generation_config.json", "special_tokens_map.json", "additional_chat_templates/tool.jinja",
]  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_file_of_a_model_that_is_read_counts(model: Path, name: str) -> None:
    before = folder_digest(model)
    (model / name).write_text("something else")
    assert folder_digest(model) != before


def test_a_card_a_copy_and_a_time_stamp_do_not_count(model: Path) -> None:
    before = folder_digest(model)
    (model / "README.md").write_text("another card")
    shutil.copytree(model, model.parent / "copy")
    (model.parent / "copy" / "config.json").touch()
    assert folder_digest(model) == folder_digest(model.parent / "copy") == before


def test_the_identity_of_a_run_follows_contents_and_not_places(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = model.parent
    (project / "q.jsonl").write_text("{}")
    monkeypatch.chdir(project)

    def config(folder: Path) -> dict[str, object]:
        return {"student": str(folder / "model"), "questions": str(folder / "q.jsonl"), "lr": 0.1}

    here = config(project)
    with RunDir.open("rl", here, inputs=contents(here)) as run:
        assert set(read_run(run.path)["inputs"]) == {"./model", "./q.jsonl"}
        assert 'student = "./model"' in (run.path / "config.toml").read_text()
    monkeypatch.chdir(tmp_path)
    moved = shutil.move(project, tmp_path / "moved")
    monkeypatch.chdir(moved)
    there = config(tmp_path / "moved")
    assert config_digest("rl", here, {}) != config_digest("rl", there, {})
    with RunDir.open("rl", there, inputs=contents(there)) as run:
        assert run.resumed and run.path.name == "rl-0001"
    (tmp_path / "moved" / "model" / "chat_template.jinja").write_text("another template")
    with pytest.raises(ConfigError, match=r"student: ./model has other contents than ./model had"):
        RunDir.open("rl", there, inputs=contents(there), resume=Path("runs/rl-0001"))
    with pytest.raises(ConfigError, match=r"lr: 0\.1 there, 0\.2 here"):
        RunDir.open("rl", there | {"lr": 0.2}, inputs={}, resume=Path("runs/rl-0001"))
    with RunDir.open("rl", there, inputs=contents(there)) as run:
        assert not run.resumed and run.path.name == "rl-0002"


def test_places_in_the_project_are_recorded_relative_to_it(tmp_path: Path) -> None:
    inside = {"a": [f"{tmp_path}/x y/z"], "b": 3, "c": "nq,hotpotqa", "d": "/etc/hosts", "e": f"{tmp_path}"}
    assert portable(inside, tmp_path) == {**inside, "a": ["./x y/z"]}
    workspace = Workspace(tmp_path / ".dgpo")
    workspace.remember(by="dgpo index", index=tmp_path / "index", teacher="qwen-3b")
    assert json.loads((tmp_path / ".dgpo" / "workspace.json").read_text())["index"]["value"] == "./index"
    assert workspace.resolve("teacher", None).value == "qwen-3b"


def test_each_of_several_files_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--data a.jsonl,nq,b.jsonl` is one setting."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c,d.jsonl"):
        Path(name).write_text(name)
    config = {"questions": "a.jsonl, nq,b.jsonl"}
    before = config_digest("rl", config, contents(config))
    Path("b.jsonl").write_text("B.jsonl")
    after = config_digest("rl", config, contents(config))
    assert after != before
    other = {"questions": "a.jsonl, hotpotqa,b.jsonl"}
    assert config_digest("rl", other, contents(other)) != after
    assert contents({"questions": "nq,hotpotqa", "index": "http://a,http://b"}) == {}
    assert set(contents({"questions": "c,d.jsonl"})) == {"c,d.jsonl"}, "a comma may stand in a name"


@pytest.mark.parametrize(
    "name", ["nq.jsonl", "train_nq.jsonl.gz", "nq.csv", "nq.tsv", "nq.json", "nq.csv.gz", "qrels/test.tsv"]
)
def test_questions_of_every_form_in_a_folder_count(tmp_path: Path, name: str) -> None:
    (tmp_path / "qrels").mkdir()
    for file in ("queries.jsonl", name):
        (tmp_path / file).write_text("a")
    config = {"bench_dir": str(tmp_path)}
    before = contents(config)
    (tmp_path / name).write_text("b")
    after = contents(config)
    assert before and after != before
    (tmp_path / "notes.txt").write_text("c")
    assert contents(config) == after
