"""An agent over HTTP, by OpenAI's protocol: POST /v1/chat/completions and GET /v1/models; and a page to talk with it.

The client sees one model: searches happen inside. What a reply holds is told in chat_reply.py, what a request may hold
in chat_request.py. Errors have the protocol's form, also those that happen within a stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dgpo_cli.agent.events import Finished
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.serving.chat_reply import Delta, Narration, finish_reason, problem, usage
from dgpo_cli.serving.chat_request import ChatRequest, read_request
from dgpo_cli.serving.description import request_body, responses
from dgpo_cli.serving.door import Door, ReplyRefused, unless_left
from dgpo_cli.serving.metrics import Metrics
from dgpo_cli.serving.page import chat_page
from dgpo_cli.serving.probe import Probe
from dgpo_cli.serving.settings import ServeSettings
from dgpo_cli.serving.shared import Accepted, Running, SharedAgent

_STILL_THERE_S = 15.0  # between signs of life in a stream that has nothing to say
_log = logging.getLogger(__name__)


class _Everything(PathConvertor):
    regex = r"[\s\S]*"  # also a line end, so that every address below /v1 gets an error of the protocol's form


register_url_convertor("everything", _Everything())


class ProtocolProblem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ProtocolError(BaseModel):
    error: ProtocolProblem


class AgentServer:
    """`about` is what is told of the model, `examples` are questions to try.

    `probe` asks the program that runs the model, where that is another one.
    """

    def __init__(
        self,
        asker: SharedAgent,
        door: Door,
        settings: ServeSettings,
        metrics: Metrics,
        *,
        name: str,
        about: Mapping[str, Any],
        examples: Sequence[str] = (),
        probe: Probe | None = None,
    ) -> None:
        self.asker, self.name, self._door, self._settings, self._metrics = asker, name, door, settings, metrics
        self._model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dgpo"}
        self._model |= {"agent": {**about, "examples": list(examples)}}
        self._about = {"id": name, **about}
        self._codec, self._probe = asker.codec, probe

    async def failure(self) -> str | None:
        """Why questions fail: what the probe says, else how the last episode broke the engine."""
        return self.asker.failure if self._probe is None else await self._probe.failure()

    def about(self) -> dict[str, Any]:
        return self._about | {"open_questions": self.asker.open}

    def add_to(self, app: FastAPI) -> None:
        """Add the routes of the agent and of its page."""
        streamed = {"content": {"text/event-stream": {}}, "description": "The reply, or its events."}
        example = {"messages": [{"role": "user", "content": "Who wrote the novel?"}], "model": self.name}
        app.add_api_route(
            "/v1/chat/completions",
            self.complete,
            methods=["POST"],
            responses=responses(ProtocolError, 400, 401, 403, 404, 408, 413, 421, 500, 502, 503) | {200: streamed},
            openapi_extra=request_body(ChatRequest, example),
        )
        refused = responses(ProtocolError, 401, 403, 404, 421)
        app.add_api_route("/v1/models", self.models, methods=["GET"], responses=refused)
        app.add_api_route("/v1/models/{name:everything}", self.model, methods=["GET"], responses=refused)
        every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        app.add_api_route("/v1/{path:everything}", self.unknown, methods=every, include_in_schema=False)
        app.add_api_route("/", self.page, methods=["GET"], include_in_schema=False)

    async def models(self, request: Request) -> Response:
        return self._told(request, {"object": "list", "data": [self._model]})

    async def model(self, request: Request, name: str) -> Response:
        if name != self.name:
            return self._told(request, ReplyRefused(404, f"the model {name!r} is not here", code="model_not_found"))
        return self._told(request, self._model)

    async def unknown(self, request: Request, path: str) -> Response:
        cause = f"{request.method} /v1/{path} is not here; there are POST /v1/chat/completions and GET /v1/models"
        return self._told(request, ReplyRefused(404, cause, code="unknown_url"))

    async def page(self, request: Request) -> Response:
        try:
            self._door.admit_unknown(request)
        except ReplyRefused as error:
            return _refused(error)
        content, headers = chat_page()
        return Response(content, headers=headers, media_type="text/html")

    def _told(self, request: Request, content: Mapping[str, Any] | ReplyRefused) -> Response:
        try:
            self._door.admit(request)
        except ReplyRefused as error:
            return _refused(error)
        return _refused(content) if isinstance(content, ReplyRefused) else JSONResponse(content)

    async def complete(self, request: Request) -> Response:
        """Everything that can be refused is refused before the first byte of a stream."""
        started = time.perf_counter()
        running: Running | None = None
        try:
            asked, asking = read_request(await self._door.body(request), self._settings, self.name)
            running = self.asker.ask(asking)
            await unless_left(request, running.next())  # Accepted
            reply = _Reply(self.name, asked, running, Narration(self._codec.format.stream()))
            if asked.stream:
                return _Stream(running, self._streamed(reply), media_type="text/event-stream", headers=_UNCACHED)
            with running:
                return JSONResponse(await unless_left(request, self._whole(reply)))
        except ReplyRefused as error:
            self._metrics.answered(error.code or "refused", time.perf_counter() - started, failed=True)
            failed = _refused(error)
        except ClientDisconnect:
            failed = Response(status_code=499)
        except Exception as error:  # a bug: its traceback for the log, its name for the client
            _log.exception("a question failed")
            self._metrics.answered("bug", time.perf_counter() - started, failed=True)
            failed = _refused(_bug(error))
        if running is not None:
            self.asker.drop(running.number)
        return failed

    async def _whole(self, reply: _Reply) -> dict[str, Any]:
        while (trajectory := self._follow(reply, await reply.running.next())[1]) is None:
            pass
        choice = {"index": 0, "message": reply.narration.message | {"refusal": None}, "logprobs": None}
        choice |= reply.ending(trajectory)
        return reply.head("chat.completion") | {"choices": [choice], "usage": usage(trajectory, self._codec)}

    async def _streamed(self, reply: _Reply) -> AsyncIterator[str]:
        yield reply.chunk({"role": "assistant", "content": ""})
        trajectory = None
        try:
            while trajectory is None:
                waiting = asyncio.ensure_future(reply.running.next())
                try:
                    while not (await asyncio.wait({waiting}, timeout=_STILL_THERE_S))[0]:
                        yield ": still working\n\n"
                finally:  # the client has left
                    waiting.cancel()
                deltas, trajectory = self._follow(reply, waiting.result())
                for delta in deltas:
                    yield reply.chunk(delta)
        except ReplyRefused as error:
            yield self._broken(reply, error)
            return
        except Exception as error:
            _log.exception("a stream failed")
            yield self._broken(reply, _bug(error))
            return
        yield reply.chunk({}, reply.ending(trajectory))
        if reply.asked.with_usage:
            yield _event(reply.head("chat.completion.chunk") | {"choices": [], "usage": usage(trajectory, self._codec)})
        yield "data: [DONE]\n\n"

    def _broken(self, reply: _Reply, error: ReplyRefused) -> str:
        """The last event of a stream that has no end of its own, as the protocol has it."""
        if error.code != "search_failed":  # which was counted with its episode
            self._metrics.answered(error.code or "refused", reply.seconds, failed=True)
        return _event(problem(error))

    def _follow(self, reply: _Reply, event: Any) -> tuple[list[Delta], Trajectory | None]:
        """What the client hears of an event, and the episode if that was its end."""
        if isinstance(event, Accepted):
            return [], None
        if isinstance(event, Finished):
            made = event.trajectory
            self._metrics.answered(made.stop.value, reply.seconds, failed=made.failed_search is not None)
            self._metrics.tokens.labels("written").inc(made.num_written)
            self._metrics.tokens.labels("read").inc(len(made.token_ids) - made.num_written)
        deltas = reply.narration.tell(event)
        if deltas and not reply.told:
            reply.told = True
            self._metrics.first_seconds.observe(reply.seconds)
        return deltas, event.trajectory if isinstance(event, Finished) else None


class _Reply:
    def __init__(self, model: str, asked: ChatRequest, running: Running, narration: Narration) -> None:
        self.asked, self.running, self.narration, self.told = asked, running, narration, False
        self._head: dict[str, str | int] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.running.started

    def head(self, kind: str) -> dict[str, str | int]:
        return self._head | {"object": kind}

    def ending(self, trajectory: Trajectory) -> dict[str, str]:
        """`stop_reason` says it in this program's own words."""
        return {"finish_reason": finish_reason(trajectory), "stop_reason": trajectory.stop.value}

    def chunk(self, delta: Delta, ending: Mapping[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} | dict(ending or {})
        return _event(
            self.head("chat.completion.chunk")
            | {"choices": [choice]}
            | ({"usage": None} if self.asked.with_usage else {})
        )


class _Stream(StreamingResponse):
    """Gives the episode up where the client leaves before its end."""

    def __init__(self, running: Running, content: AsyncIterator[str], **options: Any) -> None:
        super().__init__(content, **options)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._running:
            await super().__call__(scope, receive, send)


_UNCACHED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _refused(error: ReplyRefused) -> Response:
    headers = {"Retry-After": "1"} if error.code == "queue_full" else None
    return JSONResponse(problem(error), error.status, headers)


def _bug(error: Exception) -> ReplyRefused:
    return ReplyRefused(500, f"{type(error).__name__} in the server; its log has the traceback", code="bug")


def _event(content: Mapping[str, Any]) -> str:
    """JSON escapes line ends, so that nothing that was read can begin an event of its own."""
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
