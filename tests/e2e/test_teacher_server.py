"""`dgpo distill-data --teacher-url`: a stand-in for the server, and `transformers serve` itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from tests.conftest import SOURCES
from tests.model_server import ModelServer
from tests.offline import ROLLOUT
from transformers import Qwen2ForCausalLM

from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer, save_model
from dgpo_cli.offline.world.sizes import ModelSize, qwen2_config
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.teacher.trajectory_files import read_trajectories

KEY = "s3cret-teacher-key"


def story(prompt):
    """One search, then an answer."""
    if "</information>" in prompt:
        return "<think>it is there</think><answer>nothing</answer>"
    return f"<search>{prompt.strip()}</search>"


def options(offline, *more):
    limits = ("max_new_tokens=24", "max_observation_tokens=96", "max_tokens=200", "wave=4")
    chosen = [part for limit in limits for part in ("-o", f"rollout.{limit}")]
    return ("distill-data", "--data", str(offline.questions("train")), "--index", str(offline.index), *chosen, *more)


@pytest.fixture
def server():
    made = ModelServer(story)
    yield made
    made.close()


def records(run):
    return [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]


def test_a_served_teacher_answers_and_the_key_is_written_nowhere(dgpo, folder, offline, server, monkeypatch):
    server.key = KEY
    asked = options(
        offline, "--teacher-url", server.url, "--tokenizer", str(offline.student), "--limit", "6", "--keep", "all"
    )
    refused = dgpo(*asked)
    assert refused.status == 1 and "HTTP 401" in refused.errors[0] and "DGPO_TEACHER_KEY" in refused.err
    monkeypatch.setenv("DGPO_TEACHER_KEY", KEY)
    ended = dgpo(*asked, "--json")
    assert ended.status == 0, ended.err
    result = json.loads(ended.out)
    assert (result["episodes"], result["kept"], result["searches"], result["token_ids"]) == (6, 6, 1.0, "from text")
    assert "teacher: big-model at http://127.0.0.1" in ended.err
    found = read_trajectories(folder / "runs/distill-data-0001")
    codec = Codec(load_tokenizer(str(offline.student)), TINYWORLD)
    for trajectory in found.trajectories:
        written = [i for i, w in zip(trajectory.token_ids, trajectory.written, strict=True) if w]
        assert codec.decode(written).endswith("</search><think>it is there</think><answer>nothing</answer>")
        assert (trajectory.answer, trajectory.logprobs, len(trajectory.searches)) == ("nothing", None, 1)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert KEY not in file.read_text(errors="replace")
    assert KEY not in ended.out + ended.err + refused.err
    remembered = json.loads((folder / ".dgpo/workspace.json").read_text())
    assert "trajectories" in remembered and "teacher" not in remembered, "kd could not load it"
    trained = dgpo("kd", "--method", "seqkd", "--student", str(offline.student), "--steps", "2", "-o", "batch_size=2")
    assert trained.status == 0, trained.err


def test_a_server_that_fails_loses_nothing_and_the_same_command_goes_on(dgpo, folder, offline, server):
    asked = options(offline, "--teacher-url", server.url, "--tokenizer", str(offline.student), "--limit", "10")
    asked += ("-o", "server.attempts=2", "-o", "server.pause_s=0", "-o", "server.concurrency=1")
    answered = server.write
    written = []

    def breaks(prompt):
        written.append(prompt)
        if len(written) > 12:
            server.failures = [(500, "out of memory", {})] * 99
        return answered(prompt)

    server.write = breaks
    broken = dgpo(*asked)
    assert broken.status == 1
    assert "failed 2 times, the last time with: HTTP 500" in broken.errors[0] and "goes on" in broken.err
    kept = records(folder / "runs/distill-data-0001")
    assert 1 + 4 <= len(kept) < 1 + 10, "the header and what was finished"
    server.write, server.failures = answered, []
    ended = dgpo(*asked)
    assert ended.status == 0 and "going on with runs/distill-data-0001" in ended.err
    now = records(folder / "runs/distill-data-0001")
    assert now[: len(kept)] == kept and len({row["key"] for row in now[1:]}) == len(now) - 1 == 10


def test_ctrl_c_waits_for_no_reply(folder, offline, server):
    server.seconds = 600.0
    argv = options(
        offline, "--teacher-url", server.url, "--teacher-name", "big-model", "--tokenizer", str(offline.student)
    )
    path = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    server.failures = [(200, {"choices": [{"text": "", "finish_reason": "length"}]}, {})] * 2  # to the two probes
    process = subprocess.Popen(
        [sys.executable, "-m", "dgpo_cli", *argv],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while server.in_flight < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.in_flight == 4
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130 and "the same command goes on" in said, said
        assert time.monotonic() - started < 120
    finally:
        process.kill()


def test_settings_that_do_not_go_together(dgpo, offline, server):
    base = options(offline, "--dry-run")
    url = ("--teacher-url", server.url, "--tokenizer", str(offline.student))
    for more, expected in [
        ((*url, "--teacher", "qwen-3b"), "--teacher-url one that is served"),
        ((*url, "--teacher-8bit"), "for a teacher that is loaded here"),
        ((*url, "--engine", "vllm"), "for a teacher that is loaded here"),
        (("--teacher-name", "x"), "--teacher-name has no effect"),
        (("--tokenizer", str(offline.student)), "--tokenizer has no effect"),
        (("--teacher-url", "no-address"), "no address of a model server"),
        (("--teacher-url", server.url), "the tokenizer of 'big-model' is not to be found"),
        (("--teacher", str(offline.teacher), "--engine", "vllm"), "vLLM is not installed here"),
        (("--teacher", str(offline.teacher), "--engine", "fast"), "engine = 'fast'"),
        ((*url, "-o", "server.concurrency=0"), "server.concurrency = 0"),
    ]:
        ended = dgpo(*base, *more)
        assert ended.status == 1 and len(ended.errors) == 1, (more, ended.err)
        assert expected in ended.errors[0], (more, ended.err)
    ended = dgpo("eval", "--model", str(offline.teacher), "--index", str(offline.index), "--engine", "vllm")
    assert ended.status == 1 and "vLLM is not installed here" in ended.errors[0]


def test_data_of_another_tokenizer_is_refused(dgpo, folder, offline, server):
    from tests.tiny import bpe_tokenizer, qwen

    tokenizer = bpe_tokenizer()
    save_model(folder / "other", qwen(len(tokenizer)), tokenizer, TINYWORLD)
    assert (
        dgpo(
            *options(offline, "--teacher-url", server.url, "--tokenizer", "other", "--limit", "2", "--keep", "all")
        ).status
        == 0
    )
    ended = dgpo("kd", "--method", "seqkd", "--student", str(offline.student), "--steps", "1")
    assert ended.status == 1 and "tokens of another tokenizer" in ended.errors[0]


@pytest.fixture(scope="module")
def trained(offline, tmp_path_factory):
    """A teacher that has learned by heart to search once and to answer, questions of the train split."""
    tokenizer = load_tokenizer(str(offline.teacher))
    codec = Codec(tokenizer, TINYWORLD)
    questions = [(question, 0) for question in read_questions(offline.questions("train"))[:12]]

    def script(prompt, read):
        if not read:
            return f"<think>{prompt.split()[-1]}</think><search>{prompt.strip()}</search>"
        titles = [passage.title for passage in codec.passages_in(read[0])]
        return f"<answer>{titles[0]}</answer>" if titles else "so be it<|endoftext|>"

    told = ScriptedEngine(codec, script)
    retriever = open_index(str(offline.index)).retriever
    shown = list(run_episodes(questions, engine=told, codec=codec, retriever=retriever, settings=ROLLOUT))
    width = max(len(t.token_ids) for t in shown)
    ids = torch.tensor([[*t.token_ids, *[0] * (width - len(t.token_ids))] for t in shown])
    written = torch.tensor([[*t.written, *[False] * (width - len(t.written))] for t in shown])
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(qwen2_config(ModelSize(64, 2, 4), len(tokenizer)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = model(input_ids=ids, labels=ids.masked_fill(~written, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    save_model(folder, model, tokenizer, TINYWORLD)
    return folder


@contextmanager
def transformers_serve(model, home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "it does not come up"
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_transformers_serve_writes_what_the_engine_in_process_writes(dgpo, folder, offline, trained):
    pytest.importorskip("openai", reason="transformers serve needs it")
    shared = ("--limit", "20", "--keep", "all", "--temperature", "0", "--json")
    here = dgpo(*options(offline, "--teacher", str(trained), "--out", "here", *shared))
    assert here.status == 0, here.err
    with transformers_serve(trained, folder / "hf") as url:
        name = ("--teacher-url", url, "--teacher-name", str(trained))
        served = dgpo(*options(offline, *name, "--out", "served", *shared))
        wrong = dgpo(*options(offline, "--teacher-url", url, "--teacher-name", "x", "--tokenizer", str(trained)))
    assert served.status == 0, served.err
    assert wrong.status == 1 and "Server is pinned to" in wrong.errors[0]
    ours, theirs = read_trajectories(folder / "served"), read_trajectories(folder / "here")
    assert ours.tokenizer == theirs.tokenizer and ours.protocol == theirs.protocol
    assert len(ours.trajectories) == len(theirs.trajectories) == 20
    for a, b in zip(ours.trajectories, theirs.trajectories, strict=True):
        # The offline world's tags are tokens of their own, so that the tokens of its texts are the sampled ones too.
        assert (a.token_ids, a.written, a.stop, a.answer, a.score) == (
            b.token_ids,
            b.written,
            b.stop,
            b.answer,
            b.score,
        )
        assert [(call.query, call.hits) for call in a.searches] == [(call.query, call.hits) for call in b.searches]
        assert a.logprobs is None and b.logprobs is not None
    assert json.loads(served.out)["searches"] > 0.5 and any(t.answer for t in ours.trajectories)
