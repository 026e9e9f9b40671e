"""Fuzzing of every reader of records and of the escaper: one error line each, no forged tag, no special token.

`make test-hostile` runs all of it, the ordinary tests a sample; the inputs are a function of the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dgpo_cli.core.config import load_toml
from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_metrics import read_metrics
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Passage, Question, StopReason
from dgpo_cli.core.untrusted import questions_in
from dgpo_cli.core.workspace import KEYS, Workspace
from dgpo_cli.errors import DgpoError
from dgpo_cli.evaluation.compare import read_side
from dgpo_cli.export.export import measurements
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import DEFAULT, TAGS, Tags
from dgpo_cli.models import gguf
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.shapes import shape_from
from dgpo_cli.models.sources import ModelSource, config_values, read_protocol
from dgpo_cli.offline.reproduce import read_record
from dgpo_cli.offline.stages import Stages
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.qa_sets.demonstrations import read_demonstrations
from dgpo_cli.retrieval.dense.vectors import shard_fault
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.index.part import read_part
from dgpo_cli.training.run import fitting
from dgpo_cli.training.sizes.jobs import kept_sizes
from dgpo_cli.training.teacher.trajectory_files import read_trajectories
from tiny import bpe_tokenizer

SAMPLE, ALL = 100, 20_000  # mutated records for each reader
TEXTS, ALL_TEXTS = 3_000, 1_000_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**6, 10**30, 1.5, float("nan"), float("inf"), "", "a", "\x00", "\x1b[2J", "é" * 50, [], {},
    [[]], [None], {"a": {}}, "0" * 5000,
)  # fmt: skip
EPISODE = Trajectory(
    Question("1", "Who?", ("A",), "x"), (5, 6, 7), (False, True, True), (0.0, -1.0, -0.5), (), StopReason.ANSWERED, "A"
).to_json()
RUN = {"command": "kd", "status": "running", "digest": "d", "created": "2026", "seed": 1, "result": {"best": 1.0}}
MANIFEST: dict[str, Any] = {
    "retriever": "bm25", "settings": {"k1": 0.9}, "state": {"a": 1}, "corpus": "c", "corpus_digest": "d", "passages": 1,
    "skipped": 0, "problems": [], "seconds": 1.0, "versions": {"a": "1"}, "files": {}, "skipped_by_kind": {},
    "format": 3,
}  # fmt: skip
PART: dict[str, Any] = {
    "number": 1, "of": 2, "rows": 1, "retriever": "dense", "settings": {}, "encoding": {}, "corpus": "c",
    "corpus_digest": "d", "passages": 3, "skipped_by_kind": {}, "problems": [], "format": 1,
}  # fmt: skip
QUESTION = {"id": "1", "question": "Who?", "golden_answers": ["A"], "hops": 2, "supporting_titles": ["T"]}
HEADER = {"schema": "trajectories", "version": 1, "protocol": DEFAULT.to_json(), "tokenizer": None}
WORKSPACE = {key: {"value": "v", "by": "b", "at": "t"} for key in KEYS}
SCORED = EPISODE | {"score": {"total": 1.0, "correct": True, "parts": {"em": 1.0}}}
EVALUATION = {"schema": "evaluation", "version": 1} | {key: {} for key in ("model", "settings", "index", "questions")}
REPORT = {
    "model": {"weights": "w"}, "complete": True, "decoding": {"temperature": 0.0, "seed": 0},
    "benchmarks": {"nq": {"n": 3, "em": 0.5, "f1": 0.5, "em_interval": {"low": 0.1, "high": 0.9},
                          "index": {"passages": 9, "retriever": "bm25"}}},
}  # fmt: skip
FIT = {"micro_batch_tokens": 512, "wave": None, "limit_bytes": 9, "attempts": [["tokens", [512, None, True]]]}
ROW = {"em": 0.5, "em_interval": [0.4, 0.6], "em_by_hops": {"1": 0.5}, "questions": 2, "searches": 1.5, "right": "01"}
LADDER = {"row": "kd", "seed": 0, "digest": "d", "result": ROW, "train_seconds": 1.5, "validation": [[1.0, 0.5]]}
CONFIG = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "vocab_size": 9, "text_config": {"head_dim": 4}}  # fmt: skip
GGUF = {"name": "m", "file": "m.gguf", "sha256": "0", "bytes": 9, "architecture": "llama", "weights": 10**6,
        "form": "Q8_0", "quantized": True, "licence": None, "repository": "a/b"}  # fmt: skip
SHOWN = {
    "id": "1",
    "question": "Who?",
    "golden_answers": ["A"],
    "steps": [{"search": "q"}, {"think": "", "answer": "A"}],
}
SQUAD = {"data": [{"paragraphs": [{"qas": [{"id": "1", "question": "Who?", "answers": [{"text": "A"}]}]}]}]}


def _measurements(folder: Path) -> None:
    run = folder / "runs" / "eval-0001"
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(RUN | {"command": "eval"}))
    (run / "report.json").write_bytes((folder / "report.json").read_bytes())
    measurements("w", [run.parent])


def _shape(folder: Path) -> None:
    values = config_values(ModelSource("x", str(folder), local=True))
    assert values is not None
    shape_from("x", values)


def _described(folder: Path) -> None:
    record = gguf.record_of(folder)
    assert record is not None
    gguf.described(record)


def _shard(folder: Path) -> None:
    (folder / "0.npy").write_bytes(b"vectors")
    shard_fault(folder / "0.npy")


def _workspace(folder: Path) -> None:
    for key in KEYS:
        Workspace(folder).resolve(key, None)


# What reads `x` in a folder, and what the file holds when it is right: one JSON value, or one on each line.
READERS: dict[str, tuple[str, Callable[[Path], object], list[Any]]] = {
    "run": ("run.json", read_run, [RUN]),
    "metrics": ("metrics.jsonl", read_metrics, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]),
    "workspace": ("workspace.json", _workspace, [WORKSPACE]),
    "manifest": ("manifest.json", read_manifest, [MANIFEST]),
    "part": ("part.json", read_part, [PART]),
    "protocol": ("protocol.json", lambda f: read_protocol(f / "protocol.json"), [DEFAULT.to_json()]),
    "trajectories": ("t.jsonl", lambda f: read_trajectories(f / "t.jsonl"), [HEADER, EPISODE, EPISODE | {"sample": 1}]),
    "questions": ("q.jsonl", lambda f: read_questions(f / "q.jsonl"), [QUESTION, QUESTION | {"id": "2"}]),
    "list of questions": ("q.json", lambda f: read_questions(f / "q.json"), [[QUESTION, QUESTION | {"id": "2"}]]),
    "evaluation": ("nq.jsonl", lambda f: read_side(str(f / "nq.jsonl")), [EVALUATION, SCORED]),
    "report": ("report.json", _measurements, [REPORT]),
    "sizes": ("sizes.json", lambda f: kept_sizes(f, {}), [{"micro_batch_tokens": 9, "gradient_checkpointing": True}]),
    "fit": ("fit.json", lambda f: fitting._read(cast(RunDir, SimpleNamespace(path=f))), [FIT]),
    "ladder": ("kd.json", lambda f: read_record(f / "kd.json"), [LADDER]),
    "world": (
        "world.json",
        lambda f: Stages.made_world(cast(Stages, SimpleNamespace(world_folder=f))),
        [{"digest": "d", "seed": 1}],
    ),
    "config of a model": ("config.json", _shape, [CONFIG]),
    "origin of a model": (gguf.RECORD_FILE, _described, [GGUF]),
    "shard of vectors": ("0.json", _shard, [{"truncated": 0}]),
    "demonstrations": ("d.jsonl", lambda f: read_demonstrations(f / "d.jsonl"), [SHOWN]),
    "SQuAD": ("q.json", lambda f: read_questions(f / "q.json"), [SQUAD]),
    "table": ("q.csv", lambda f: read_questions(f / "q.csv"), ["id,question,answer", '1,"Who?",A']),
    "lines": ("x.jsonl", lambda f: list(read_jsonl(f / "x.jsonl")), [{"a": 1}]),
    "toml": ("x.toml", lambda f: load_toml(f / "x.toml"), ['a = "b"', "[c]", "d = [1, 2]"]),
}


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts, at any depth, replaced, removed or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {key: item for key, item in value.items() if key != name}
        return value | {name: mutated(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], mutated(value[place], chance), *value[place + chance.randrange(2) :]]
    return chance.choice(ODD)


def written(rows: list[Any], chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.6:
        place = chance.randrange(len(rows))
        rows = [*rows[:place], mutated(rows[place], chance), *rows[place + 1 :]]
    content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    if kind < 0.6:
        return content
    if kind < 0.7:
        depth = chance.choice((10, 100, 10_000))
        return chance.choice((b"[", b'{"a":')) * depth
    if kind < 0.75:
        return b'{"a": ' + b"9" * chance.choice((10, 400, 5_000)) + b"}"
    if kind < 0.85:
        return content[: chance.randrange(len(content))]
    spoiled = bytearray(content)
    for _ in range(chance.randrange(1, 8)):
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    return bytes(spoiled)


def fuzz(name: str, folder: Path, inputs: int) -> None:
    file, read, rows = READERS[name]
    chance = random.Random(f"{name} 1")
    for number in range(inputs):
        content = written(rows, chance)
        (folder / file).write_bytes(content)
        try:
            read(folder)
        except DgpoError as error:
            assert "Traceback" not in error.message
        except Exception as error:
            raise AssertionError(f"input {number}: {content[:300]!r}") from error


@pytest.mark.parametrize("name", READERS)
def test_a_reader_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, SAMPLE)


@pytest.mark.hostile
@pytest.mark.parametrize("name", READERS)
def test_a_reader_says_what_is_wrong_of_many(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, ALL)


@pytest.mark.parametrize("name", READERS)
def test_what_is_right_is_read(name: str, tmp_path: Path) -> None:
    file, read, rows = READERS[name]
    (tmp_path / file).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    if name != "part":  # which would have to be a whole index
        read(tmp_path)


def test_questions_of_a_pipe_are_text_or_an_error() -> None:
    import io

    chance = random.Random("pipe 1")
    for _ in range(SAMPLE):
        content = chance.randbytes(200)
        for _, question in questions_in(io.BytesIO(content)):
            assert isinstance(question, DgpoError) or question.encode().decode() == question


def real_codec() -> Codec:
    """SmolLM2's tokenizer where the package that carries it is installed, else the one that the tests train."""
    try:
        from dgpo_cli.models.load import load_tokenizer

        return Codec(load_tokenizer("smollm2-135m"), DEFAULT)
    except DgpoError:
        return Codec(bpe_tokenizer(), DEFAULT)


def hostile_text(pieces: list[str], chance: random.Random) -> str:
    return "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 9)))


def refuse_forgery(codec: Codec, texts: int) -> None:
    special = {token.content: i for i, token in codec.tokenizer.added_tokens_decoder.items() if token.special}
    names = sorted(special)
    pieces = [*TAGS.markers, *names]
    pieces += ["<", "</", ">", "/", " ", "\n", "\t", "\x00", "\u00a0", "\u200b", "search", "ANSWER",
              "think x=1", "&lt;", "\\u003c", "\uff1c", "a", "Oslo", "<|", "|>", "im_end", "é", "\x1b"]  # fmt: skip
    pieces += [name[:3] for name in names] + [name[3:] for name in names]
    chance = random.Random("escaper 1")
    forbidden = set(special.values())
    for number in range(texts):
        text, _ = TAGS.escape(hostile_text(pieces, chance))
        ids = codec._encode_anew(text, False)
        assert not forbidden & set(ids), (number, text)
        back = codec.decode(ids)
        assert not any(tag in back for tag in TAGS.markers) and TAGS.parse(back).action is None, (number, text)


def test_no_text_forges_a_tag_or_a_special_token() -> None:
    refuse_forgery(Codec(bpe_tokenizer(), DEFAULT), TEXTS)


@pytest.mark.hostile
def test_no_text_of_a_million_forges_a_tag_or_a_special_token() -> None:
    refuse_forgery(real_codec(), ALL_TEXTS)


def test_the_fuzzer_sees_a_text_that_is_not_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tags, "escape", lambda _, text: (text, 0))
    with pytest.raises(AssertionError):
        refuse_forgery(Codec(bpe_tokenizer(), DEFAULT), TEXTS)


def test_observations_hold_one_pair_of_tags() -> None:
    codec, chance = Codec(bpe_tokenizer(), DEFAULT), random.Random("observation 1")
    for _ in range(SAMPLE):
        text = hostile_text([*TAGS.markers, "x ", "<", "\n"], chance)
        read = codec.decode(codec.observation_ids([Passage("1", text)], 60).ids)
        assert (read.count("<information>"), read.count("</information>")) == (1, 1)
        assert sum(read.count(tag) for tag in TAGS.markers) == 2
    assert isinstance(DEFAULT, Protocol)
