"""Processes that are forked from the test's own, so that nothing is imported twice."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def together(
    size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240, **environment: str
) -> list[Any]:
    """What `function(*arguments)` returns in each of `size` processes, by rank; what it raises fails the test.

    `environment` is what a launcher would set beside their number.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    started = [
        context.Process(target=_work, args=(queue, rank, size, port, environment, function, arguments))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    try:
        ended = dict(queue.get(timeout=timeout) for _ in started)
    finally:
        for process in started:
            process.join(10)
            process.kill()
    failed = [text for done, text in ended.values() if not done]
    assert not failed, "\n".join(failed)
    return [ended[rank][1] for rank in range(size)]


def _work(
    queue: Any,
    rank: int,
    size: int,
    port: int,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    from accelerate import PartialState

    from dgpo_cli.models.devices import world

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | environment
    PartialState._reset_state()
    world.cache_clear()
    try:
        queue.put((rank, (True, function(*arguments))))
    except BaseException:
        queue.put((rank, (False, traceback.format_exc())))
    queue.close()
    queue.join_thread()
    os._exit(0)


def forked(folder: Path, *arguments: object, prepare: Callable[[], object] | None = None) -> tuple[int, list[str]]:
    """Status, negative for a signal, and lines of the command in a copy of this process, in which `prepare` was called.

    It works in `folder`, unless `prepare` goes elsewhere.
    """
    output = folder / "output"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        from dgpo_cli.cli import main

        status = 99
        try:
            os.chdir(folder)
            told = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(told, stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if prepare is not None:
                prepare()
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, output.read_text().splitlines()
