"""`dgpo serve --model` as a process, asked by clients that other people wrote."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_agent import LIBRARY
from tests.served import DIRECT, Served, as_process, ask, served, until

from dgpo_cli.qa_sets import read_questions

TOKEN = "correct-horse-battery-staple"
TWICE = [{"role": "user", "content": "Where does it end, asked twice?"}]
REASONING = (
    "I need the town. \nSearch: Vesapo\nFound: Vesapo\nNow the river. \nSearch: Orla\nFound: Orla (river)\n"
    "The results say so. \n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with as_process([sys.executable, "-m", "tests.scripted_agent", f"token={TOKEN}", "max_episodes=8"]) as made:
        yield made


@pytest.fixture(scope="module")
def openai(server: Served) -> Any:
    made = pytest.importorskip("openai")
    return made.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=60)


def test_the_openai_client(openai: Any) -> None:
    from openai.types.chat import ChatCompletion

    assert [model.id for model in openai.models.list()] == ["scripted"]
    assert openai.models.retrieve("scripted").owned_by == "dgpo"
    reply = openai.chat.completions.create(model="scripted", messages=TWICE, temperature=0.7, seed=3, user="me")
    ChatCompletion.model_validate_json(reply.model_dump_json())  # nothing that the protocol demands is missing
    message = reply.choices[0].message
    assert (message.content, reply.choices[0].finish_reason) == ("Orla", "stop")
    assert message.reasoning_content == REASONING
    assert [a.type for a in message.annotations] == ["url_citation"] * 2
    first = message.annotations[0]
    assert (first.url_citation.title, first.url_citation.start_index, first.url_citation.end_index) == (
        "Orla (river)",
        0,
        4,
    )
    assert {name: first.passage[name] for name in ("id", "title", "score")} == {
        "id": "p2", "title": "Orla (river)", "score": 2.5,
    }  # fmt: skip
    assert first.passage["text"] == "The Orla is a river of 80 km. It ends in Lake Mun."
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 100


def test_its_streams(openai: Any) -> None:
    whole = openai.chat.completions.create(model="scripted", messages=TWICE)
    chunks = list(
        openai.chat.completions.create(
            model="scripted", messages=TWICE, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == REASONING
    assert "".join(delta.content or "" for delta in deltas) == "Orla"
    assert chunks[-1].usage == whole.usage
    # The client's own way of putting a stream together.
    with openai.chat.completions.stream(model="scripted", messages=TWICE) as stream:
        made = stream.get_final_completion().choices[0].message
    assert (made.content, made.reasoning_content) == ("Orla", REASONING)
    assert [len(search["passages"]) for search in made.searches] == [1, 1]
    assert made.annotations[0].passage["id"] == "p2"


def test_its_errors(openai: Any, server: Served) -> None:
    import openai as library

    def asked(**fields: Any) -> Any:
        return openai.chat.completions.create(**{"model": "scripted", "messages": TWICE} | fields)

    with pytest.raises(library.BadRequestError) as refused:
        asked(n=2)
    assert (refused.value.param, refused.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(library.NotFoundError, match="this server has 'scripted'"):
        asked(model="gpt-4o")
    with pytest.raises(library.AuthenticationError):
        openai.with_options(api_key="wrong").models.list()
    broken = [{"role": "user", "content": "a broken search"}]
    with pytest.raises(library.InternalServerError, match=r"the search failed: http://search\.example") as failed:
        asked(messages=broken)
    assert (failed.value.status_code, failed.value.code) == (502, "search_failed")
    told = []
    with pytest.raises(library.APIError, match=r"the search failed: http://search\.example"):
        for chunk in asked(messages=broken, stream=True):
            told.append(chunk.choices[0].delta)
    assert told[0].role == "assistant", "the stream had begun"


def test_a_hostile_passage_forges_nothing(openai: Any) -> None:
    messages = [{"role": "user", "content": "hostile"}]
    chunks = openai.chat.completions.create(model="scripted", messages=messages, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Orla"
    found = [s["passages"][0] for d in deltas for s in getattr(d, "searches", None) or () if "passages" in s]
    assert found[0]["text"] == LIBRARY["hostile"].text and "forged" in found[0]["text"]


def running(server: Served) -> int:
    reply = ask(f"{server.url}/health", headers={"Authorization": f"Bearer {TOKEN}"})
    return int(reply.json["model"]["open_questions"])


@pytest.mark.parametrize("stream", [True, False])
def test_what_its_client_leaves_is_dropped(openai: Any, server: Served, stream: bool) -> None:
    import openai as library

    slow = {"model": "scripted", "messages": [{"role": "user", "content": "slow"}]}
    if stream:
        chunks = openai.chat.completions.create(**slow, stream=True)
        next(chunks)
        until(lambda: running(server) == 1)
        chunks.close()
    else:
        with pytest.raises(library.APITimeoutError):
            openai.with_options(timeout=1.0).chat.completions.create(**slow)
    until(lambda: running(server) == 0, 5)


def test_streams_that_are_left_say_nothing_in_the_log() -> None:
    with as_process([sys.executable, "-m", "tests.scripted_agent", "max_episodes=8"]) as made:
        body = json.dumps({"messages": [{"role": "user", "content": "slow"}], "stream": True}).encode()
        for _ in range(20):
            with DIRECT.open(f"{made.url}/v1/chat/completions", data=body, timeout=30) as reply:
                reply.readline()
        until(lambda: ask(f"{made.url}/health").json["model"]["open_questions"] == 0)
        assert made.stop() == "stopped after 0 questions\n"


HUB = """
import sys
from huggingface_hub import InferenceClient
client = InferenceClient(base_url=sys.argv[1], api_key=sys.argv[2])
asked = {"messages": [{"role": "user", "content": sys.argv[3]}], "model": "scripted", "max_tokens": 2000}
reply = client.chat_completion(**asked)
print(reply.choices[0].message.content, reply.usage.completion_tokens > 20)
print("".join(piece.choices[0].delta.content or "" for piece in client.chat_completion(**asked, stream=True)))
"""


@pytest.mark.slow
def test_the_client_of_the_hub(server: Served) -> None:
    """In a process of its own: in that of the tests the hub is switched off, and so is its client."""
    command = [sys.executable, "-c", HUB, server.url, TOKEN, TWICE[0]["content"]]
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.stdout.split() == ["Orla", "True", "Orla"], ended.stderr


@pytest.mark.slow
def test_the_program_llm(server: Served, tmp_path: Path) -> None:
    """By the settings that its manual gives for OpenAI-compatible models."""
    pytest.importorskip("llm", reason="llm is not installed (pip install llm)")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: agent\n  model_name: scripted\n  api_base: {server.url}/v1\n  api_key_name: agent\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"agent": TOKEN}))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    for extra in ([], ["--no-stream"], ["-s", "answer in French", "-o", "temperature", "0"]):
        command = [sys.executable, "-m", "llm", "-m", "agent", *extra, TWICE[0]["content"]]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (ended.returncode, ended.stdout.strip()) == (0, "Orla"), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_open_answers_are_finished_or_cut_before_it_stops(by: int) -> None:
    replies: list[Any] = []

    def question(url: str, text: str) -> None:
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        replies.append(ask(f"{url}/v1/chat/completions", body))

    with as_process([sys.executable, "-m", "tests.scripted_agent", "stop_timeout_s=3"]) as made:
        for text, cut in (("slow", True), ("Which river?", False)):
            asking = threading.Thread(target=question, args=(made.url, text))
            asking.start()
            if cut:
                until(lambda: ask(f"{made.url}/health").json["model"]["open_questions"] == 1)
        until(lambda: len(replies) == 1)
        said = made.stop(by)
        until(lambda: len(replies) == 2)
        finished, ended = (reply.json for reply in replies)
        assert finished["choices"][0]["message"]["content"] == "Orla"
        assert ended["error"]["code"] == "server_stopping" and replies[1].status == 503
        assert "stopped after 2 questions" in said


@pytest.mark.slow
def test_a_trained_model_answers_as_in_chat(
    dgpo: Any, folder: Path, offline: Any, searcher: Path, monkeypatch: Any
) -> None:
    """Earlier messages change nothing, as in `dgpo chat`; the page and /retrieve are beside it; a server may search."""
    questions = [question.text for question in read_questions(offline.questions("train"))[:4]]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in questions)))
    limits = ["-orollout.max_tokens=200", "-orollout.max_new_tokens=24"]
    ended = dgpo("chat", "--model", str(searcher), "--index", str(offline.index), "--json", "--device", "cpu", *limits)
    spoken = json.loads(ended.out)["answers"]
    options = ["--device", "cpu", *limits]
    with served(offline.index, "--model", str(searcher), *options) as made:
        assert made.about["model"] == searcher.name
        (model,) = ask(f"{made.url}/v1/models").json["data"]
        assert model["id"] == searcher.name and model["agent"]["places"] == 32
        assert "<title>dgpo</title>" in ask(made.url).content.decode()
        assert made.retrieve(queries=questions[:1]).json["result"][0]
        health = ask(f"{made.url}/health").json
        assert health["index"]["passages"] and health["model"]["max_tokens"] == 200
        with served(made.url, "--model", str(searcher), *options) as beyond:
            for url in (made.url, beyond.url):
                messages: list[Any] = []
                for text, expected in zip(questions, spoken, strict=True):
                    messages.append({"role": "user", "content": text})
                    reply = ask(f"{url}/v1/chat/completions", json.dumps({"messages": messages}).encode()).json
                    choice = reply["choices"][0]
                    assert choice["message"]["content"] == (expected["answer"] or "")
                    assert choice["stop_reason"] == expected["stop"]
                    searches = choice["message"].get("searches", [])
                    assert [s["query"] for s in searches] == [s["query"] for s in expected["searches"]]
                    titles = [[passage["title"] for passage in search["passages"]] for search in searches]
                    assert titles == [[hit["title"] for hit in search["hits"]] for search in expected["searches"]]
                    messages.append({"role": "assistant", "content": choice["message"]["content"]})
            assert any(answer["searches"] for answer in spoken)
            made.stop()
            until(lambda: ask(f"{beyond.url}/health").status == 503, 60)
            body = json.dumps({"messages": [{"role": "user", "content": "never asked before"}]}).encode()
            reply = ask(f"{beyond.url}/v1/chat/completions", body)
            assert reply.status == 502 and reply.json["error"]["code"] == "search_failed"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["-o", "max_episodes=4"], "max_episodes has no effect without a model"),
        (["-o", "rollout.max_turns=1"], "rollout has no effect without a model"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
        (["--model", "MODEL", "-o", "max_episodes=0"], "max_episodes = 0 is out of range"),
        (["--model", "MODEL", "-o", "rollout.top_k=0"], "top_k = 0 is too small"),
        (["--model", "MODEL", "--index", "http://127.0.0.1:9"], "http://127.0.0.1:9/retrieve failed"),
        (["--model", "MODEL", "-o", "max_episodes=1000000"], "1000000 episodes at once are expected to need"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_it_refuses_to_start_in_one_line(dgpo: Any, offline: Any, arguments: list[str], cause: str) -> None:
    index = [] if "--index" in arguments else ["--index", str(offline.index)]
    given = [str(offline.student) if argument == "MODEL" else argument for argument in arguments]
    ended = dgpo("serve", *index, "--port", "0", "--device", "cpu", *given)
    assert ended.status == 1 and len(ended.errors) == 1 and cause in ended.errors[0], ended.err
    assert "Traceback" not in ended.err
