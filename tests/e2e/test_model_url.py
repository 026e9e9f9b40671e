"""`--model-url`: eval, chat and serve with a stand-in for a server that has the model."""

import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.model_server import ModelServer
from tests.served import as_process, ask, until

from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model

KEY = "s3cret-model-key"
LIMITS = ("max_new_tokens=24", "max_observation_tokens=96", "max_tokens=200")


@pytest.fixture(scope="module")
def codec(searcher):
    loaded = load_model(str(searcher), device=torch.device("cpu"))
    return Codec(loaded.tokenizer, loaded.protocol)


@pytest.fixture
def server(searcher, codec):
    """It writes what the model writes greedily, and tells token ids or text."""
    model = load_model(str(searcher), device=torch.device("cpu")).model
    model.generation_config.eos_token_id = None

    def write(prompt):
        ids = codec.tokenizer(prompt, add_special_tokens=False).input_ids
        written = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        return codec.decode(written[0, len(ids) :].tolist())

    made = ModelServer(write, codec=codec)
    yield made
    made.close()


@pytest.fixture
def base(offline, searcher, folder):
    (folder / "questions").mkdir()
    (folder / "questions/nq.jsonl").write_text(offline.questions("test").read_text())
    limits = [part for limit in LIMITS for part in ("-o", f"rollout.{limit}")]
    return ["--model", str(searcher), "--index", str(offline.index), "--device", "cpu", *limits]


def measured(dgpo, base, *more):
    ended = dgpo("eval", *base, "--bench-dir", "questions", "--bench", "nq", "--limit", "6", "--json", *more)
    assert ended.status == 0, ended.err
    return json.loads(ended.out), ended.err


def episodes(report):
    rows = [json.loads(line) for line in Path(report["run"], "nq.jsonl").read_text().splitlines()]
    searched = {row["key"]: [call | {"seconds": None} for call in row["searches"]] for row in rows[1:]}
    return rows[0], {row["key"]: (row["token_ids"], row["answer"], searched[row["key"]]) for row in rows[1:]}


def test_a_served_model_gives_the_episodes_of_the_folder(dgpo, folder, base, server, codec, monkeypatch):
    here, _ = measured(dgpo, base)
    server.key = KEY
    refused = dgpo("eval", *base, "--bench-dir", "questions", "--bench", "nq", "--model-url", server.url)
    assert refused.status == 1 and "HTTP 401" in refused.errors[0] and "DGPO_MODEL_KEY" in refused.err
    monkeypatch.setenv("DGPO_MODEL_KEY", KEY)
    there, said = measured(dgpo, base, "--model-url", server.url)
    assert f"model: big-model at {server.url}" in said
    (_, ours), (header, theirs) = episodes(here), episodes(there)
    assert theirs == ours and len(ours) == 6
    assert here["benchmarks"]["nq"]["searches"] > 0.5, "there is something to compare"
    assert header["model"]["weights"] == f"big-model at {server.url}" and header["model"]["parameters"] is None
    assert header["settings"]["engine"] == "server" and header["settings"]["computed_in"] is None
    assert there["benchmarks"]["nq"]["published"] is None
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert KEY not in file.read_text(errors="replace")


def test_an_evaluation_goes_on_where_the_server_failed(dgpo, base, server):
    url = ("--model-url", server.url, "-o", "server.attempts=1", "-o", "server.concurrency=1")
    write, written = server.write, []

    def breaks(prompt):
        written.append(prompt)
        if len(written) > 8:
            server.failures = [(500, "out of memory", {})] * 9
        return write(prompt)

    server.write = breaks
    broken = dgpo("eval", *base, "--bench-dir", "questions", "--bench", "nq", "--limit", "6", "--batch-size", "2", *url)
    assert broken.status == 1 and "HTTP 500" in broken.errors[0]
    assert "--model-url" in broken.err and "--teacher" not in broken.err
    kept = Path("runs/eval-0001/nq.jsonl").read_text()
    assert 1 + 1 <= kept.count("\n") < 1 + 6, "the header and what was finished"
    server.write, server.failures = write, []
    # How a server is asked decides nothing, so another number at once goes on as well.
    report, said = measured(dgpo, base, "--batch-size", "2", *url[:2], "-o", "server.concurrency=3")
    assert "going on with" in said and report["benchmarks"]["nq"]["n"] == 6
    assert Path("runs/eval-0001/nq.jsonl").read_text().startswith(kept)


def test_chat_asks_the_server(dgpo, base, server, monkeypatch):
    server.codec, server.write = (
        None,
        lambda prompt: "<answer>so it is</answer>" if "</information>" in prompt else "<search>a film</search>",
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who made it?\n"))
    ended = dgpo("chat", *base, "--model-url", server.url)
    assert ended.status == 0 and ended.out == "so it is\n", ended.err
    server.failures = [(503, "loading", {})] * 99
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who made it?\n"))
    ended = dgpo("chat", *base, "--model-url", server.url, "-o", "server.attempts=1")
    assert ended.status == 1 and len(ended.errors) == 1 and "HTTP 503" in ended.errors[0]


def test_serve_answers_with_what_the_server_writes(base, server):
    """Several at once, streams, a model server that fails, one that has gone, and the way back."""

    def write(prompt):
        if "slowly" in prompt:
            held.append(slow.wait(10))
        return "<answer>so it is</answer>" if "</information>" in prompt else "<think>I look.</think><search>a film"

    def asked(question, **more):
        body = {"messages": [{"role": "user", "content": question}]} | more
        return ask(f"{made.url}/v1/chat/completions", json.dumps(body).encode())

    slow, held = threading.Event(), []
    server.codec, server.write = None, lambda prompt: write(prompt) + "</search>"
    more = ("--model-url", server.url, "-o", "server.attempts=1")
    with as_process([sys.executable, "-m", "dgpo_cli", "serve", *base, "--port", "0", "--json", *more]) as made:
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(asked, "Who made it slowly?")
            until(lambda: server.in_flight)
            message = asked("Who made it?").json["choices"][0]["message"]  # nobody waits for the slow one
            slow.set()
            assert waits.result().json["choices"][0]["message"]["content"] == "so it is"
        assert all(held), "it was answered while the slow one was written"
        assert message["content"] == "so it is" and message["searches"][0]["query"] == "a film"
        assert message["searches"][0]["passages"] and message["reasoning_content"].startswith("I look.")
        streamed = asked("Who made it?", stream=True).content.decode()
        assert '"content": "so it is"' in streamed and streamed.endswith("data: [DONE]\n\n")
        server.failures = [(503, "loading", {})] * 9
        failed = asked("Who made it?")
        assert failed.status == 500 and failed.json["error"]["code"] == "engine_failed"
        assert f"{server.url}/completions failed 1 times" in failed.json["error"]["message"]
        assert "HTTP 503" in failed.json["error"]["message"]
        server.failures = []
        assert asked("Who made it?").json["choices"][0]["message"]["content"] == "so it is"
        server.close()
        health = ask(f"{made.url}/health")
        assert health.status == 503 and server.url in health.json["detail"]
        said = made.stop()
    assert f"model: big-model at {server.url}" in said and "Traceback" not in said


def test_settings_that_do_not_go_together(dgpo, base, server):
    url, bench = ("--model-url", server.url), ("--bench-dir", "questions", "--bench", "nq")
    for command, more, expected in [
        ("eval", (*bench, "--model-name", "x"), "--model-name has no effect"),
        ("chat", ("--model-name", "x"), "--model-name has no effect"),
        ("eval", (*bench, "-o", "server.attempts=2"), "-o server has no effect"),
        ("eval", (*bench, *url, "-o", "precision=float32"), "precision is that of a model that is loaded here"),
        ("eval", (*bench, *url, "--engine", "vllm"), "for a model that is loaded here"),
        ("eval", (*bench, "--model-url", "no-address"), "no address of a model server"),
        ("eval", (*bench, *url, "--model-name", "other"), "`other` does not exist"),
        ("chat", ("--model-url", "http://127.0.0.1:9/v1"), "failed 2 times"),
        ("serve", ("--model-name", "x", "--port", "0"), "--model-name has no effect"),
        ("serve", ("-o", "server.attempts=2", "--port", "0"), "-o server has no effect"),
        ("serve", (*url, "-o", "precision=float32", "--port", "0"), "precision is that of a model that is loaded here"),
        ("serve", (*url, "--model-name", "other", "--port", "0"), "`other` does not exist"),
        ("serve", ("--model-url", "http://127.0.0.1:9/v1", "--port", "0"), "failed 2 times"),
    ]:
        ended = dgpo(command, *base, *more, "-q")
        assert ended.status == 1 and len(ended.errors) == 1, (more, ended.err)
        assert expected in ended.errors[0], (more, ended.err)
