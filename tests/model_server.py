"""A stand-in for a server that speaks OpenAI's /v1/completions: it plays a script and fails when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dgpo_cli.models.codec import Codec

PLAIN_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "frequency_penalty", "seed", "stop"}


class ModelServer:
    """`write(prompt)` is what the model would go on to write. With a codec it takes and tells token ids, as vLLM does;
    without one it takes text alone and refuses fields that it does not know, as `transformers serve` does.
    """

    def __init__(self, write: Callable[[str], str], *, codec: Codec | None = None) -> None:
        self.write, self.codec = write, codec
        self.models: list[dict[str, Any]] = [{"id": "big-model"}]
        self.failures: list[tuple[int, Any, dict[str, str]] | None] = []  # the next replies; None drops the connection
        self.stop_reason = False  # tell which stop string ended a text
        self.keeps_stop = False  # leave it in the text
        self.key: str | None = None
        self.paths = {"/v1/models", "/v1/completions"}
        self.seconds = 0.0  # that writing takes
        self.requests: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any] | None) -> None:
                reply = outer._reply(self.path, body, self.headers.get("Authorization"))
                if reply is None:
                    self.connection.close()
                    return
                status, content, headers = reply
                payload = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(payload)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:  # the client has gone
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, path: str, body: dict[str, Any] | None, authorization: str | None) -> Any:
        if path not in self.paths:
            return 404, {"detail": "Not Found"}, {}
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": "invalid key"}}, {}
        if body is None:
            return 200, {"object": "list", "data": self.models}, {}
        with self._lock:
            self.requests.append(body)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            failing = bool(self.failures)
            failure = self.failures.pop(0) if failing else None
        try:
            if failing:
                return failure
            time.sleep(self.seconds)
            return self._complete(body)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _complete(self, body: dict[str, Any]) -> Any:
        if body["model"] not in [row["id"] for row in self.models]:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}, {}
        if self.codec is None:
            if set(body) - PLAIN_FIELDS or not isinstance(body["prompt"], str):
                return 422, {"detail": f"Unexpected fields in the request: {set(body) - PLAIN_FIELDS}"}, {}
            return 200, {"choices": [self._text_choice(body)]}, {}
        return 200, {"choices": [self._token_choice(body, self.codec)]}, {}

    def _text_choice(self, body: dict[str, Any]) -> dict[str, Any]:
        """A word counts as a token."""
        text = self.write(body["prompt"])
        found = [(text.index(stop), stop) for stop in body.get("stop", ()) if stop in text]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "text": text}
        if found:
            place, stop = min(found)
            choice["text"] = text[: place + len(stop) * self.keeps_stop]
        elif len(text.split()) > body["max_tokens"]:
            choice |= {"finish_reason": "length", "text": " ".join(text.split()[: body["max_tokens"]])}
        if self.stop_reason:
            choice["stop_reason"] = min(found)[1] if found else None
        return choice

    def _token_choice(self, body: dict[str, Any], codec: Codec) -> dict[str, Any]:
        given = body["prompt"]
        prompt = codec.tokenizer(given).input_ids if isinstance(given, str) else given
        ids = codec.text_ids(self.write(codec.decode(prompt)))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "text": "not looked at"}
        for count in range(1, len(ids) + 1):
            text = codec.decode(ids[:count])
            if any(stop in text for stop in body.get("stop", ())):
                ids = ids[:count]
                break
        else:
            ids.append(codec.tokenizer.eos_token_id)
        if len(ids) > body["max_tokens"]:
            ids, choice["finish_reason"] = ids[: body["max_tokens"]], "length"
        choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.5 * place for place in range(len(ids))]}
        return choice
