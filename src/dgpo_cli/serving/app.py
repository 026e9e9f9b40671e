"""An index over HTTP, by Search-R1's protocol: POST /retrieve with `queries`, `topk` and `return_scores`.

Beside it: /health (no token needed), /metrics, and where there is one an agent (serving/agent.py). Every error is JSON,
{"detail": cause}. A reply to /retrieve names the index in the header `Dgpo-Index`, so that a client notices when
another one takes its place.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from dgpo_cli import __version__
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.remote.search_r1 import INDEX_HEADER
from dgpo_cli.serving.agent import AgentServer
from dgpo_cli.serving.batcher import Batcher, Busy
from dgpo_cli.serving.description import request_body, responses
from dgpo_cli.serving.door import Door, ReplyRefused, unless_left
from dgpo_cli.serving.metrics import Metrics
from dgpo_cli.serving.probe import Probe
from dgpo_cli.serving.settings import ServeSettings

_GONE = 499  # the client left before the reply
_log = logging.getLogger(__name__)


class RetrieveRequest(BaseModel):
    """Search-R1's request; other fields are ignored, as its own server does, and so is "3" taken for 3."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class Problem(BaseModel):
    detail: str


class SearchServer:
    """`about` is what /health reports of the index; everybody is let in where there is no `door`.

    `probe` asks the part of the index that lies elsewhere, if there is one.
    """

    def __init__(
        self,
        batcher: Batcher,
        settings: ServeSettings,
        metrics: Metrics,
        *,
        about: Mapping[str, Any],
        door: Door | None = None,
        probe: Probe | None = None,
        agent: AgentServer | None = None,
    ) -> None:
        self._door, self._agent = Door(settings) if door is None else door, agent
        self._probe = probe
        self.batcher, self.settings, self.metrics = batcher, settings, metrics
        self._about = dict(about)

    def app(self) -> FastAPI:
        """The application with all routes."""
        made = FastAPI(title="dgpo serve", version=__version__, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        problems = responses(Problem, 401, 403, 408, 413, 421, 422, 500, 503)
        made.add_api_route(
            "/retrieve",
            self.retrieve,
            methods=["POST"],
            responses=problems,
            openapi_extra=request_body(RetrieveRequest, {"queries": ["Who wrote the novel?"], "topk": 3}),
        )
        made.add_api_route("/health", self.health, methods=["GET"], responses=responses(Problem, 503))
        made.add_api_route(
            "/metrics",
            self.count,
            methods=["GET"],
            responses=responses(Problem, 401, 403, 421),
            response_class=PlainTextResponse,
        )
        if self._agent is not None:
            self._agent.add_to(made)
        return made

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        searching = asyncio.create_task(self.batcher.run())
        if self._agent is not None:
            self._agent.asker.start()
        yield
        if self._agent is not None:
            self._agent.asker.close()
        searching.cancel()
        with suppress(asyncio.CancelledError):
            await searching

    async def retrieve(self, request: Request) -> Response:
        started = time.perf_counter()
        status, content = 500, b""
        self.metrics.in_flight.inc()
        try:
            status, content = 200, await self._answer(request)
        except ReplyRefused as error:
            status, content = error.status, _problem(error.cause)
        except Busy as error:
            status, content = 503, _problem(error.message)
        except RetrievalError as error:
            content = _problem(error.message)
        except ClientDisconnect:
            status = _GONE
        except Exception as error:  # a bug: its traceback for the log, its name for the client
            _log.exception("a request failed")
            content = _problem(f"{type(error).__name__} in the server; its log has the traceback")
        finally:
            self.metrics.in_flight.dec()
            self.metrics.finished(status, time.perf_counter() - started)
        headers = {INDEX_HEADER: self._about["digest"]} if status == 200 else None
        return Response(content, status, headers, "application/json")

    async def health(self, request: Request) -> Response:
        """Whether the server can search and answer; what it serves, and why it cannot, is told only to who may ask."""
        failure = self.batcher.failure if self._probe is None else await self._probe.failure()
        if failure is None and self._agent is not None:
            failure = await self._agent.failure()
        state: dict[str, Any] = {"status": "ok" if failure is None else "failing"}
        with suppress(ReplyRefused):
            self._door.admit(request)
            state |= {"index": self._about} | ({} if self._agent is None else {"model": self._agent.about()})
            state |= {} if failure is None else {"detail": failure}
        return JSONResponse(state, 200 if failure is None else 503)

    async def count(self, request: Request) -> Response:
        try:
            self._door.admit(request)
        except ReplyRefused as error:
            return Response(_problem(error.cause), error.status, media_type="application/json")
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request) -> bytes:
        question = self._parse(await self._door.body(request))
        k = self.settings.default_topk if question.topk is None else question.topk
        answers = await unless_left(request, self.batcher.search(question.queries, k))
        # json writes the shortest digits that read back as the same number, so scores survive exactly.
        scored = question.return_scores
        content = {"result": [[_scored(hit) if scored else _bare(hit) for hit in hits] for hits in answers]}
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()

    def _parse(self, body: bytes) -> RetrieveRequest:
        try:
            question = RetrieveRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the request"
            raise ReplyRefused(422, f"{field}: {first['msg']}") from error
        settings = self.settings
        if len(question.queries) > settings.max_queries:
            raise ReplyRefused(
                413, f"{len(question.queries)} queries are more than max_queries = {settings.max_queries}"
            )
        for place, query in enumerate(question.queries):
            if len(query) > settings.max_query_chars:
                cause = f"{len(query)} characters are more than max_query_chars = {settings.max_query_chars}"
                raise ReplyRefused(422, f"queries.{place}: {cause}")
        if question.topk is not None and not 1 <= question.topk <= settings.max_topk:
            raise ReplyRefused(422, f"topk: {question.topk} is not from 1 to max_topk = {settings.max_topk}")
        return question


def _scored(hit: Hit) -> dict[str, dict[str, str] | float]:
    return {"document": _bare(hit), "score": hit.score}


def _bare(hit: Hit) -> dict[str, str]:
    return {"id": hit.passage.id, "contents": hit.passage.contents}


def _problem(cause: str) -> bytes:
    return json.dumps({"detail": cause}).encode()
