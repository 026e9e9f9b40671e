"""A server from bind to stop: the port is taken first, requests in flight are answered last."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from dgpo_cli.errors import ConfigError
from dgpo_cli.serving.connections import bound_logs, limited, places
from dgpo_cli.serving.settings import ServeSettings
from dgpo_cli.serving.shared import SharedAgent

# Connections that wait in the kernel. What the event loop takes of them at a time is far less, see `places`.
_WAITING = 1024
_TO_TELL_S = 2  # for clients to hear that their question was ended


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address and does not listen yet; port 0 takes a free one. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise ConfigError(f"{host} is no address of this machine: {error}", hint="give --host 127.0.0.1") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free again
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken by another program", hint="give another --port, or --port 0 for any"
            ) from error
        if number == errno.EACCES:
            raise ConfigError(f"port {port} needs rights that you do not have", hint="give --port 8000") from error
        raise ConfigError(f"{host} port {port} cannot be bound: {error}", hint="give --host 127.0.0.1") from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: FastAPI,
    bound: socket.socket,
    settings: ServeSettings,
    *,
    ready: Callable[[], None],
    asker: SharedAgent | None = None,
) -> None:
    """Answer until SIGTERM or Ctrl-C; `ready` is called once connections are accepted.

    Open requests have `stop_timeout_s` then; questions to an agent that take longer are ended with an error.
    """
    most, backlog = places(settings)
    bound_logs()
    config = uvicorn.Config(
        app,
        http=limited(settings, most),
        backlog=backlog,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout_s) + (0 if asker is None else _TO_TELL_S),
    )
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _Server(config, ready, asker, settings.stop_timeout_s).run(sockets=[bound])
    except KeyboardInterrupt:  # uvicorn raises the signal again after it has stopped
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        if asker is not None:  # a second Ctrl-C passes over what the server does at its end
            asker.close()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], asker: SharedAgent | None, stop_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._ready, self._asker, self._stop_timeout_s = ready, asker, stop_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(_WAITING)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._asker is not None:
            self._asker.refuse()
            asyncio.get_running_loop().call_later(self._stop_timeout_s, self._asker.cut)
        await super().shutdown(sockets)
