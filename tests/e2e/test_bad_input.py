"""What users get wrong: one line that says what, one that says what to do, a status that is not 0, and nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, StopReason
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.load import save_model
from dgpo_cli.retrieval.index.build import build_index
from tiny import bpe_tokenizer, qwen

PROTOCOL = Protocol("tiny", "{question}\n", "no action\n", chat_template=False)
CORPUS = [{"id": str(i), "title": f"Tower {i}", "text": f"Built by mason {i}."} for i in range(20)]
QUESTIONS = [{"id": str(i), "question": f"Who built tower {i}?", "golden_answers": [f"mason {i}"]} for i in range(8)]


def trajectory(question: dict[str, Any], tokenizer: Any) -> Trajectory:
    """An answer without a search."""
    prompt = tokenizer.encode(f"{question['question']}\n", add_special_tokens=False)
    answer = tokenizer.encode(f"<answer>{question['golden_answers'][0]}</answer>", add_special_tokens=False)
    return Trajectory(
        question=Question(question["id"], question["question"], tuple(question["golden_answers"]), "tiny"),
        token_ids=(*prompt, *answer),
        written=(False,) * len(prompt) + (True,) * len(answer),
        logprobs=None,
        searches=(),
        stop=StopReason.ANSWERED,
        answer=question["golden_answers"][0],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good things: a corpus, its index, questions, two models of one family, one of another, trajectories."""
    root = tmp_path_factory.mktemp("made")
    ours, theirs = bpe_tokenizer(), bpe_tokenizer(500)
    save_model(root / "student", qwen(len(ours), 0, hidden=16), ours, PROTOCOL)
    save_model(root / "teacher", qwen(len(ours), 1, hidden=16), ours, PROTOCOL)
    save_model(root / "stranger", qwen(len(theirs), hidden=16), theirs, PROTOCOL)
    write_jsonl_atomic(root / "corpus.jsonl", CORPUS)
    write_jsonl_atomic(root / "questions" / "nq.jsonl", QUESTIONS)
    build_index(root / "corpus.jsonl", root / "index")
    header = {"schema": "trajectories", "version": 1, "protocol": PROTOCOL.to_json(), "settings": {}}
    rows = [trajectory(question, ours) for question in QUESTIONS]
    write_jsonl_atomic(root / "trajectories.jsonl", [header, *({"key": t.key} | t.to_json() for t in rows)])
    return root


@dataclass(frozen=True, slots=True)
class Case:
    """`argv` with {here} and {made} filled in; `prepare` makes the bad thing; `says` stands in the error line."""

    name: str
    argv: str
    says: str
    prepare: Callable[[Path, Path], object] = lambda here, made: None
    status: int = 1


EVAL = "eval --model {made}/student --index {made}/index --bench nq --bench-dir {made}/questions --device cpu "
KD = "kd --student {made}/student --teacher {made}/teacher --data {made}/trajectories.jsonl --device cpu --steps 2 "
RL = "rl --student {made}/student --teacher {made}/teacher --index {made}/index --device cpu --steps 1 "


def cut(path: Path, keep: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def broken_trajectories(here: Path, made: Path) -> None:
    lines = (made / "trajectories.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    del row["written"]
    (here / "t.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]) + "\n")


def unfinished_run(here: Path, made: Path) -> None:
    RunDir.open("kd", {}, out=here / "run").close()


def eval_run(here: Path, made: Path) -> None:
    RunDir.open("eval", {}, out=here / "run").close()


CASES = [
    # corpora and indexes
    Case("missing corpus", "index nowhere.jsonl", "nowhere.jsonl: No such file or directory"),
    Case("empty corpus", "index c.jsonl", "no usable passage", lambda h, m: (h / "c.jsonl").touch()),
    Case("corpus of broken lines", "index c.jsonl", "line 1", lambda h, m: (h / "c.jsonl").write_text("{\n{\n")),
    Case(
        "broken line, strict",
        "index c.jsonl --strict",
        "line 2",
        lambda h, m: (h / "c.jsonl").write_text('{"id": 1, "title": "a", "text": "b"}\n{"id": 2, "ti\n'),
    ),
    Case(
        "wrong encoding",
        "index c.jsonl",
        "not UTF-8",
        lambda h, m: (h / "c.jsonl").write_text(json.dumps(CORPUS[0]), encoding="utf-16"),
    ),
    Case(
        "cut-off gzip",
        "index c.jsonl.gz",
        "c.jsonl.gz",
        lambda h, m: (h / "c.jsonl.gz").write_bytes(gzip.compress((m / "corpus.jsonl").read_bytes())[:-30]),
    ),
    Case(
        "index of another corpus",
        "index c.jsonl --out i",
        "another corpus",
        lambda h, m: (copy(m / "index", h / "i"), write_jsonl_atomic(h / "c.jsonl", CORPUS[:5])),
    ),
    Case("unknown retriever", "index {made}/corpus.jsonl --retriever magic", "magic"),
    Case("no index", EVAL + "--index here", "here does not exist"),
    Case(
        "damaged index",
        EVAL + "--index i",
        "passages.jsonl",
        lambda h, m: cut(copy(m / "index", h / "i") / "passages.jsonl"),
    ),
    Case(
        "damaged manifest",
        EVAL + "--index i",
        "manifest.json is damaged",
        lambda h, m: cut(copy(m / "index", h / "i") / "manifest.json"),
    ),
    # command lines
    Case("unknown option", "kd --tempature 1", "--tempature", status=2),
    Case("unknown command", "train", "train", status=2),
    Case("text for a number", "kd --lr fast", "--lr", status=2),
    Case("unknown setting", KD + "-o objective.kl_wait=1", "kl_wait"),
    Case("setting that is no pair", KD + "-o beta", "beta"),
    Case("setting out of range", KD + "--lr -1", "lr = -1"),
    Case("unknown method", RL + "--method dpo", "unknown method 'dpo'"),
    Case("method of the other command", KD + "--method ppo", "ppo"),
    Case(
        "config of another command", KD + "--config c.toml", "topk", lambda h, m: (h / "c.toml").write_text("topk = 1")
    ),
    Case("broken config", KD + "--config c.toml", "c.toml", lambda h, m: (h / "c.toml").write_text("lr = ")),
    # questions
    Case("unknown QA set", EVAL + "--bench nqq", "nqq"),
    Case("QA set that is not in the folder", EVAL + "--bench popqa", "popqa"),
    Case("missing question file", RL + "--data nowhere.jsonl", "nowhere.jsonl"),
    Case(
        "question without an answer",
        RL + "--data q.jsonl",
        "q.jsonl:2",
        lambda h, m: write_jsonl_atomic(h / "q.jsonl", [QUESTIONS[0], {"id": "x", "question": "Who?"}]),
    ),
    Case("fewer questions than a batch", RL + "--data {made}/questions/nq.jsonl", "8 questions"),
    # models
    Case("unknown model", EVAL + "--model qwen-4b", "unknown model 'qwen-4b'"),
    Case("model of the hub without a network", EVAL + "--model no-such-org/no-such-model", "no-such-org/no-such-model"),
    Case("folder that is no model", EVAL + "--model {made}/questions", "not a model folder"),
    Case(
        "damaged weights",
        EVAL + "--model m",
        "m",
        lambda h, m: cut(copy(m / "student", h / "m") / "model.safetensors", 5000),
    ),
    Case("run that trains no model", EVAL + "--model run", "a run of `dgpo eval`, which trains no model", eval_run),
    Case("run without weights", EVAL + "--model run", "has no weights", unfinished_run),
    Case("tokenizers that differ", KD + "--teacher {made}/stranger", "different tokenizers"),
    Case("tokenizers that differ, rl", RL + "--teacher {made}/stranger", "different tokenizers"),
    # trajectories and runs
    Case("no trajectories", "kd --student {made}/student", "no trajectories"),
    Case("trajectories that are something else", KD + "--data {made}/corpus.jsonl", "not a file of trajectories"),
    Case("damaged trajectory", KD + "--data t.jsonl", "t.jsonl:3", broken_trajectories),
    Case("resume of nothing", KD + "--resume nowhere", "nowhere is not a run folder"),
    Case("resume with other settings", KD + "--resume run", "other settings", unfinished_run),
    Case("output folder with other things", KD + "--out {made}/questions", "no run folder"),
    Case("output below a file", KD + "--out {made}/corpus.jsonl/x", "corpus.jsonl"),
    Case("output over a file", KD + "--out {made}/corpus.jsonl", "corpus.jsonl"),
    Case(
        "damaged workspace",
        "kd",
        "workspace.json is damaged",
        lambda h, m: (Workspace().remember(by="x", index="y"), cut(h / ".dgpo" / "workspace.json", 20)),
    ),
    Case("unknown device", KD + "--device tpu", "tpu"),
]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line(case: Case, made: Path, folder: Path, dgpo: Callable[..., Any]) -> None:
    case.prepare(folder, made)
    before = contents(made), contents(folder)
    ended = dgpo(*case.argv.format(here=folder, made=made).split())
    assert ended.status == case.status, ended.err
    assert len(ended.errors) == 1, ended.err
    assert case.says in ended.errors[0]
    assert len(ended.errors[0]) < 600
    assert "Traceback" not in ended.err
    assert sum(line.startswith("hint: ") for line in ended.err.splitlines()) == 1
    assert ended.out == "" or case.argv.startswith("index")
    assert contents(made) == before[0], "what was there is as it was"
    after = contents(folder)
    assert {name: after.get(name) for name in before[1]} == before[1]


@pytest.mark.parametrize(
    "argv",
    [
        EVAL,
        RL + "--data {made}/questions/nq.jsonl --batch-size 4",
        RL + "--data {made}/questions/nq.jsonl --dry-run",
        "distill-data --teacher {made}/teacher --data {made}/questions/nq.jsonl --device cpu",
        KD + "--eval-data {made}/questions/nq.jsonl",
        "chat --model {made}/student --device cpu",
    ],
    ids=lambda argv: argv.split()[0],
)
def test_a_dead_server_is_found_before_a_model_is_loaded(
    argv: str, made: Path, folder: Path, dgpo: Callable[..., Any]
) -> None:
    for name in ("student", "teacher"):  # loading either would end with another error
        cut(copy(made / name, folder / name) / "model.safetensors")
    (folder / "questions").symlink_to(made / "questions")
    (folder / "trajectories.jsonl").symlink_to(made / "trajectories.jsonl")
    ended = dgpo(*argv.format(made=folder).split(), "--index", "http://127.0.0.1:9")
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert "http://127.0.0.1:9/retrieve" in ended.errors[0] and "Connection refused" in ended.errors[0]
    assert "hint: start the server, or give an index folder" in ended.err
    assert not (folder / "runs").exists()


def test_there_are_many_kinds() -> None:
    assert len({case.name for case in CASES}) >= 40


def run_kd(dgpo: Callable[..., Any], made: Path, *more: str) -> Any:
    return dgpo(*KD.format(made=made).split(), "--batch-size", "4", *more)


def test_a_damaged_checkpoint_is_named_and_the_way_out_works(
    made: Path, folder: Path, dgpo: Callable[..., Any]
) -> None:
    assert run_kd(dgpo, made).status == 0
    run = folder / "runs" / "kd-0001"
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    state = max((run / "state").iterdir())
    cut(state / "student.safetensors")
    ended = run_kd(dgpo, made)
    assert ended.status == 1
    assert len(ended.errors) == 1
    assert str(state.relative_to(folder)) in ended.errors[0]
    assert "Traceback" not in ended.err
    assert run_kd(dgpo, made, "--fresh").status == 0


def test_two_processes_do_not_write_one_run(made: Path, folder: Path, dgpo: Callable[..., Any]) -> None:
    assert run_kd(dgpo, made, "--out", "mine").status == 0
    record = json.loads(Path("mine/run.json").read_text())
    Path("mine/run.json").write_text(json.dumps(record | {"status": "running"}))
    holder = (
        "import fcntl, time; f = open('mine/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('ready', flush=True); "
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        ended = run_kd(dgpo, made, "--out", "mine")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert ended.status == 1
    assert "another process" in ended.errors[0]


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_full_disk_leaves_what_can_go_on(made: Path, folder: Path, dgpo: Callable[..., Any], limit: int) -> None:
    """A limit on the size of a file stands in for a full disk: the system refuses the write in the same way."""
    argv = [sys.executable, "-m", "dgpo_cli", *KD.format(made=made).split(), "--batch-size", "4"]
    # Set by the child: code of ours between fork and exec would run beside threads that other tests left behind.
    limited = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    limited += "os.execv(sys.argv[2], sys.argv[2:])"
    ended = subprocess.run(
        [sys.executable, "-c", limited, str(limit), *argv],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},  # it writes large files
    )
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 1, ended.stderr
    assert len(errors) == 1, ended.stderr
    assert "no room to write" in errors[0]
    assert f"files of {limit:,} bytes: `ulimit -f unlimited`" in ended.stderr
    assert "Traceback" not in ended.stderr
    again = run_kd(dgpo, made)
    assert again.status == 0, again.err
    assert len(list((folder / "runs").iterdir())) == 1
    assert (folder / "runs" / "kd-0001" / "best" / "model.safetensors").is_file()


def test_too_little_space_is_seen_before_the_start(
    made: Path, folder: Path, dgpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    ended = run_kd(dgpo, made)
    assert ended.status == 1
    assert "GB of disk" in ended.errors[0]
