"""An agent over OpenAI's protocol, in this process: what a reply holds, what is refused, what is dropped."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.scripted_agent import ATTACK, LIBRARY, assembled
from tests.served import until

from dgpo_cli.agent.events import TokenText
from dgpo_cli.formats.registry import get
from dgpo_cli.serving.chat_reply import Narration
from dgpo_cli.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    server, _, _ = assembled(ServeSettings(max_episodes=4), max_turns=2, max_prompt_tokens=400)
    with TestClient(server.app()) as made:
        yield made


def asked(client: TestClient, question: Any = "Which river flows through Vesapo?", **fields: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return client.post("/v1/chat/completions", json={"model": "scripted", "messages": messages} | fields)


def chunks(reply: Any) -> list[Any]:
    """What the events of a stream hold; the last one says that it is over."""
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def passage(name: str, score: float, rank: int) -> dict[str, Any]:
    found = LIBRARY[name]
    return {"id": found.id, "title": found.title, "text": found.text, "score": score, "rank": rank}


def test_a_reply_holds_thoughts_searches_the_answer_and_where_it_stands(client: TestClient) -> None:
    reply = asked(client, "Where does it end, asked twice?").json()
    (choice,) = reply["choices"]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"], choice["stop_reason"]) == ("Orla", "stop", "answered")
    assert message["reasoning_content"] == (
        "I need the town. \nSearch: Vesapo\nFound: Vesapo\nNow the river. \nSearch: Orla\nFound: Orla (river)\n"
        "The results say so. \n"
    )
    assert [(s["index"], s["query"], s["passages"]) for s in message["searches"]] == [
        (0, "Vesapo", [passage("Vesapo", 2.5, 1)]), (1, "Orla", [passage("Orla", 2.5, 1)]),
    ]  # fmt: skip
    first, second = message["annotations"]
    cited = {"start_index": 0, "end_index": 4, "title": "Orla (river)", "url": "urn:dgpo:passage:p2"}
    assert first["url_citation"] == cited
    sentence = {"search": 1, "sentence": "The Orla is a river of 80 km."}
    assert first["passage"] == passage("Orla", 2.5, 1) | sentence
    assert second["passage"]["sentence"] == "The Orla flows through it."
    used = reply["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    text = "<think> The results say so. </think>\n<answer> Orla </answer>"
    assert used["completion_tokens"] > used["completion_tokens_details"]["reasoning_tokens"] > len(text) // 8


def test_a_stream_puts_together_what_the_whole_reply_holds(client: TestClient) -> None:
    whole = asked(client, "Where does it end, asked twice?").json()
    told = chunks(asked(client, "Where does it end, asked twice?", stream=True, stream_options={"include_usage": True}))
    last = told.pop()
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in told)
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    message = whole["choices"][0]["message"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert len([delta for delta in deltas if "reasoning_content" in delta]) > 12, "as it is written"
    searches: dict[int, dict[str, Any]] = {}
    for entry in (entry for delta in deltas for entry in delta.get("searches", ())):
        searches.setdefault(entry["index"], {}).update(entry)
    without_time = [{k: v for k, v in s.items() if k != "seconds"} for s in message["searches"]]
    assert [{k: v for k, v in s.items() if k != "seconds"} for s in searches.values()] == without_time
    assert [d["annotations"] for d in deltas if "annotations" in d] == [message["annotations"]]
    assert [c["choices"][0]["finish_reason"] for c in told if c["choices"][0]["finish_reason"]] == ["stop"]


@pytest.mark.parametrize(
    ("question", "reason", "last"),
    [
        ("silent", "max_turns", "(no answer: no turns were left)"),
        ("loop", "loop", "(no answer: the turn went on repeating itself)"),
    ],
)
def test_an_episode_without_an_answer_says_why(client: TestClient, question: str, reason: str, last: str) -> None:
    (choice,) = asked(client, question).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("", "length", reason)
    assert choice["message"]["reasoning_content"].endswith(f"{last}\n")


def test_no_more_tokens_are_written_than_were_asked_for(client: TestClient) -> None:
    usual = asked(client).json()["usage"]["completion_tokens"]
    for most in (1, 7, usual - 1):
        reply = asked(client, max_completion_tokens=most).json()
        assert reply["usage"]["completion_tokens"] == most
        assert reply["choices"][0]["finish_reason"] == "length"
    assert asked(client, max_tokens=usual).json()["choices"][0]["message"]["content"] == "Orla"


def test_an_answer_that_no_passage_holds_has_no_annotation(client: TestClient) -> None:
    message = asked(client, "in your own words").json()["choices"][0]["message"]
    assert (message["content"], message["annotations"]) == ("Zanzibar", [])


def test_a_passage_forges_nothing(client: TestClient) -> None:
    told = chunks(asked(client, "hostile", stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["Orla"]
    (found,) = [entry["passages"][0] for delta in deltas for entry in delta.get("searches", ()) if "passages" in entry]
    assert ATTACK.partition("\n")[0].strip() in found["title"], "it is told as it is"
    assert "forged" not in "".join(d.get("reasoning_content", "") for d in deltas).partition("\nFound:")[0]


def test_only_the_last_message_is_asked(client: TestClient) -> None:
    """As in `dgpo chat`: nothing is remembered from the question before."""
    alone = asked(client).json()
    before = [
        {"role": "system", "content": "silent"},
        {"role": "user", "content": [{"type": "text", "text": "loop"}]},
        {"role": "assistant", "content": "x", "tool_calls": []},
    ]
    question = {"role": "user", "content": [{"type": "text", "text": "Which river flows through Vesapo?"}]}
    reply = client.post("/v1/chat/completions", json={"messages": [*before, question]}).json()
    assert reply["usage"] == alone["usage"] and reply["choices"][0]["message"]["content"] == "Orla"


HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "cause"),
    [
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "not supported"),
        ({"n": 2}, 400, "n", "unsupported_parameter", "not supported"),
        ({"logprobs": True}, 400, "logprobs", "unsupported_parameter", "not supported"),
        ({"stop": ["x"]}, 400, "stop", "unsupported_parameter", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter", "text"),
        ({"top_p": 0.5}, 400, "top_p", "unsupported_parameter", "not supported"),
        ({"temperature": 3}, 400, "temperature", None, "less than or equal to 2"),
        ({"temperature": "1"}, 400, "temperature", None, "number"),
        ({"max_tokens": 0}, 400, "max_tokens", None, "greater than or equal to 1"),
        ({"messages": []}, 400, "messages", None, "at least 1"),
        ({"messages": None}, 400, "messages", None, "array"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages.0.content", None, "empty"),
        ({"messages": [{"role": "bishop", "content": "x"}]}, 400, "messages.0.role", None, "user"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "messages.1.role", None, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "messages.0.content", None, "'file'"),
        ({"messages": HELLO * 1001}, 400, "messages", None, "max_messages = 1000"),
        ({"messages": [{"role": "user", "content": "x" * 16_385}]}, 400, "messages", None, "max_question_chars"),
        ({"messages": [{"role": "user", "content": "x y " * 400}]}, 400, "messages", "context_length_exceeded", "400"),
        ({"model": "gpt-4"}, 404, "model", "model_not_found", "this server has 'scripted'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_is_refused(
    client: TestClient, fields: Any, status: int, param: str, code: str, cause: str, stream: bool
) -> None:
    reply = client.post("/v1/chat/completions", json={"messages": HELLO, "stream": stream} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code)
    assert cause in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_request(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


def test_fields_that_change_nothing_are_taken(client: TestClient) -> None:
    harmless = {"user": "me", "n": 1, "tools": [], "top_p": 1.0, "stop": None, "metadata": {"a": "b"}, "store": False}
    assert asked(client, **harmless, logit_bias={}, reasoning_effort="low").status_code == 200


def test_the_other_addresses(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("scripted", "model", "dgpo")
    assert client.get("/v1/models/scripted").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/v1/models/two%0Alines").json()["error"]["code"] == "model_not_found"
    others = (("POST", "completions"), ("GET", "chat/completions"), ("DELETE", "files/a"), ("GET", "two%0Alines"))
    for method, path in ((method, f"/v1/{path}") for method, path in others):
        reply = client.request(method, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
    found = client.post("/retrieve", json={"queries": ["Orla"], "topk": 1}).json()
    assert found == {"result": [[{"id": "p2", "contents": LIBRARY["Orla"].contents}]]}


def test_every_reference_of_the_description_leads_somewhere(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(description))
    assert references
    for reference in references:
        reduce(lambda value, name: value[name], reference.split("/"), description)
    schema = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "role" in schema["properties"]["messages"]["items"]["properties"]


def test_a_failed_search_is_told_as_such_and_health_tells_it(client: TestClient) -> None:
    cause = "the search failed: http://search.example/retrieve failed 4 times, the last time with: HTTP 500"
    reply = asked(client, "broken")
    error = {"message": cause, "type": "server_error", "param": None, "code": "search_failed"}
    assert (reply.status_code, reply.json()) == (502, {"error": error})
    *told, last = [json.loads(e[6:]) for e in asked(client, "broken", stream=True).text.split("\n\n") if e]
    assert last == {"error": error}
    assert "Search: broken" in "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in told)
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failing")
    assert "HTTP 500" in health.json()["detail"]
    assert asked(client, "Where does it end, asked twice?").status_code == 200
    # Both of its queries came from the cache.
    assert client.post("/retrieve", json={"queries": ["never asked before"]}).status_code == 200
    assert client.get("/health").json()["status"] == "ok"


def test_an_engine_that_fails_fails_its_own_questions_only(client: TestClient) -> None:
    reply = asked(client, "explode")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert client.get("/health").status_code == 503
    assert asked(client).json()["choices"][0]["message"]["content"] == "Orla"
    assert client.get("/health").json()["model"]["open_questions"] == 0


def test_many_questions_share_the_engine(client: TestClient) -> None:
    """Twelve for four places; each gets its own answer."""
    questions = ["own words", "Which river?", "asked twice"] * 4
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda question: asked(client, question).json(), questions))
    assert [r["choices"][0]["message"]["content"] for r in replies] == ["Zanzibar", "Orla", "Orla"] * 4
    assert [len(r["choices"][0]["message"].get("searches", ())) for r in replies] == [0, 1, 2] * 4


def test_only_so_many_questions_wait() -> None:
    server, asker, _ = assembled(ServeSettings(max_episodes=1, max_questions_waiting=1))
    with TestClient(server.app()) as client, ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(asked, client, "slow") for _ in range(2)]
        until(lambda: asker.open == 2)
        refused = asked(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert refused.headers["Retry-After"] == "1"
        asker.cut()
        stopped = [one.result().json()["error"] for one in slow]
        assert [error["code"] for error in stopped] == ["server_stopping"] * 2
        assert asked(client).json()["error"]["code"] == "server_stopping"


def test_who_may_ask() -> None:
    server, _, _ = assembled(ServeSettings(), "correct-horse-battery-staple")
    with TestClient(server.app()) as client:
        for path in ("/v1/models", "/v1/models/scripted", "/v1/nothing", "/metrics"):
            assert client.get(path).status_code == 401
        assert asked(client).json()["error"] | {"message": ""} == {
            "message": "", "type": "authentication_error", "param": None, "code": "invalid_api_key",
        }  # fmt: skip
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/").status_code == 200, "the page holds nothing that is secret, and asks for the token"
        client.headers["Authorization"] = "Bearer correct-horse-battery-staple"
        assert asked(client).status_code == 200


def test_pages_of_other_sites_are_not_answered(client: TestClient) -> None:
    """One that made up a name for this machine, and one that sends a request without being shown the reply."""
    for path in ("/v1/models", "/", "/metrics"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
        assert client.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get(path, headers={"Origin": "null"}).status_code == 403
        assert client.get(path, headers={"Origin": "http://testserver"}).status_code == 200
    body = json.dumps({"messages": HELLO})
    reply = client.post("/v1/chat/completions", content=body, headers={"Origin": "http://evil.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")


def test_the_page_lets_nothing_run_but_its_own_script(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "http://" not in page.text and "https://" not in page.text, "it asks no network"


def test_what_is_counted(client: TestClient) -> None:
    def count(line: str) -> float:
        found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    before = {
        name: count(name) for name in ('dgpo_questions_total{end="answered"}', 'dgpo_tokens_total{kind="written"}')
    }
    written = asked(client).json()["usage"]["completion_tokens"]
    assert [count(name) - value for name, value in before.items()] == [1, written]
    assert count("dgpo_episodes") == count("dgpo_waiting_questions") == 0


def test_threads_end_with_the_server() -> None:
    server, _, _ = assembled(ServeSettings())
    with TestClient(server.app()) as client:
        assert asked(client).status_code == 200
        assert "agent" in {thread.name for thread in threading.enumerate()}
    assert len([thread for thread in threading.enumerate() if thread.name == "agent"]) <= 1


@pytest.mark.parametrize("text", ["1. It ends.\n2. It does not.\n\n3.", "<think> a\nb </think>\n so\t it is \n"])
def test_what_is_told_does_not_depend_on_how_the_text_arrives(text: str) -> None:
    """Blanks that are tokens of their own hold words apart."""
    whole, pieces = (Narration(get("tags").stream()) for _ in range(2))
    whole.tell(TokenText(1, text))
    for letter in text:
        pieces.tell(TokenText(1, letter))
    told = [narration.message["reasoning_content"].split() for narration in (whole, pieces)]
    assert told == [re.sub("<.*?>", "", text).split()] * 2
