"""Who may ask a server, and how a request is taken in: token, names, origin, size and time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from fastapi import Request
from starlette.requests import ClientDisconnect

from dgpo_cli.serving.settings import ServeSettings

_DRAINED = 4  # times the largest body
T = TypeVar("T")


class ReplyRefused(Exception):
    """A request that is not answered; `code` and `param` are those of OpenAI's protocol."""

    def __init__(self, status: int, cause: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(cause)
        self.status, self.cause, self.code, self.param = status, cause, code, param


class Door:
    """`hosts` are the names by which a server without a token answers."""

    def __init__(self, settings: ServeSettings, token: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._settings, self._hosts = settings, frozenset(hosts)
        self._authorization = None if token is None else f"Bearer {token}".encode()

    def admit(self, request: Request) -> None:
        """Raises ReplyRefused for a missing or wrong token; without one, for what a page of another site asks.

        Such a page may have made up a name for this server, or ask it without being shown the reply.
        """
        if self._authorization is not None:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self._authorization):
                cause = "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`"
                raise ReplyRefused(401, cause, code="invalid_api_key")
        else:
            self.admit_unknown(request)

    def admit_unknown(self, request: Request) -> None:
        """As `admit` without a token."""
        if self._authorization is not None or not self._hosts:
            return
        if (name := _host(request)) not in self._hosts:
            raise ReplyRefused(
                421, f"this server is not called {name!r}; without a token it answers to its own names only"
            )
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise ReplyRefused(
                403, "without a token this server answers no page of another site", code="foreign_origin"
            )

    async def body(self, request: Request) -> bytes:
        """The body of a request that is admitted. Raises ReplyRefused, once the client can hear of it."""
        limit, timeout = self._settings.max_body_bytes, self._settings.body_timeout_s
        refused: ReplyRefused | None = None
        try:
            self.admit(request)
        except ReplyRefused as error:
            refused = error
        try:
            body = await asyncio.wait_for(_body(request, 0 if refused else limit, limit), timeout)
        except TimeoutError as error:
            raise ReplyRefused(408, f"the request did not arrive within {timeout:g} s") from error
        if refused is not None:
            raise refused
        if body is None:
            raise ReplyRefused(413, f"the request is larger than max_body_bytes = {limit}")
        return body


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Raises ClientDisconnect, and cancels it, if the client leaves first."""
    working = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, left):
            task.cancel()


async def _body(request: Request, keep: int, limit: int) -> bytes | None:
    """The request's body; None if it is larger than `keep` bytes.

    What is not kept is still read, up to a few times `limit`: a client that cannot send its request to the end would
    see a broken connection instead of the cause.
    """
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= keep:
            kept += chunk
        elif size > _DRAINED * limit:
            break
    return bytes(kept) if size <= keep else None


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _host(request: Request) -> str:
    """The host that the client believes to talk to, without its port."""
    name = request.headers.get("host", "").lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
