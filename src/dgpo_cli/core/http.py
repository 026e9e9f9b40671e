"""One exchange of JSON with a server that the user named, and whether asking again may help."""

from __future__ import annotations

import http.client
import io
import ipaddress
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError

_TRY_AGAIN = (408, 425, 429)  # besides 5xx; any other status says that the request itself is wrong
_QUOTED = 200  # characters of a server's own message
_LARGEST_REPLY = 1 << 26  # bytes


class RequestFailed(Exception):
    """An attempt failed and a retry may succeed; `wait_s` is the server's Retry-After, in seconds."""

    def __init__(self, problem: str, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


class RequestRefused(Exception):
    """A failure that a retry would not change; `status` is None where the reply itself cannot be used."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Opens addresses with a timeout for the whole of a reply, however slowly it drips."""
    return urllib.request.build_opener(_Http(), _Https(), *handlers)


class JsonClient:
    """Asks one server; safe to use from several threads. `timeout_s` is for the connection, and for a whole reply.

    `token` is sent as `Authorization: Bearer TOKEN`; `headers`, such as the key of a search API, as they are.

    No redirect is followed: a token must not follow one to another host, nor a POST become a GET.
    """

    def __init__(
        self, url: str, *, token: str | None = None, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
    ) -> None:
        self._headers = dict(headers or {}) | ({} if token is None else {"Authorization": f"Bearer {token}"})
        self._timeout_s = timeout_s
        # A proxy of the environment cannot reach this machine's own addresses.
        proxies = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
        self._opener = opener(_NoRedirect(), *proxies)

    def ask(self, url: str, body: Mapping[str, Any] | None = None) -> tuple[Mapping[str, str], dict[str, Any]]:
        """Headers and JSON object of the reply to a POST of `body`, or to a GET. Raises Failed or Refused."""
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=content, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                received = response.headers
                text = response.read(_LARGEST_REPLY + 1)
            if len(text) > _LARGEST_REPLY:
                raise RequestRefused(f"gave a reply of more than {_LARGEST_REPLY} bytes")
            reply = parse_json(text, "its reply")
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason} {_said(error)}".strip()
            if error.code < 500 and error.code not in _TRY_AGAIN:
                raise RequestRefused(f"refused the request: {problem}", error.code) from error
            raise RequestFailed(problem, _seconds(error.headers.get("Retry-After"))) from error
        except InputError as error:
            if isinstance(error.__cause__, json.JSONDecodeError):  # an answer of a server that is not itself
                raise RequestFailed(error.message) from error
            raise RequestRefused(f"gave a reply that cannot be used: {error.message}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestFailed(str(error) or type(error).__name__) from error
        if not isinstance(reply, dict):
            raise RequestFailed(f"a {type(reply).__name__} instead of a JSON object")
        return received, reply


class _Timed(io.RawIOBase):
    """Reads from a socket until a deadline; the socket's own timeout restarts with every byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._seconds = connection, connection.gettimeout()
        self._deadline = time.monotonic() + (self._seconds or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._seconds is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole reply within {self._seconds:g} s")
            self._socket.settimeout(left)
        return self._socket.recv_into(buffer)


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._whole = self.fp  # keeps the connection open
        self.fp = io.BufferedReader(_Timed(sock))

    def close(self) -> None:
        super().close()
        self._whole.close()


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def server_address(text: str) -> urllib.parse.SplitResult | None:
    """The parts of an http(s) address with a host; None for anything else."""
    try:
        parsed = urllib.parse.urlsplit(text)
        whole = parsed.scheme in ("http", "https") and parsed.hostname and (parsed.port or 1) > 0
    except ValueError:  # a port that is no number
        return None
    return parsed if whole else None


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what the server wrote, if it came in time."""
    try:
        return error.read(_QUOTED).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _seconds(text: str | None) -> float:
    """Of a Retry-After header; a date in it is not read."""
    return float(text) if text and text.strip().isdecimal() else 0.0


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
