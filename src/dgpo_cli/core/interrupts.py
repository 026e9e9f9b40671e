"""Ctrl-C: a KeyboardInterrupt where something can catch it, and status 130 at once where nothing can.

In the middle of an import the imported library would turn it into something else: a traceback, a module that is
"not found", an abort. Everything that is saved survives a kill, so such a process may end on the spot.

This file is the first to be imported, and imports next to nothing: until `watch` ran, Ctrl-C is a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # that of `typing` would have to be imported
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

STATUS = 130  # of a process that Ctrl-C ended, as shells have it


def watch() -> None:
    """Install the handler in this process; does nothing if SIGINT is ignored or handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def leave(status: object) -> None:
    """Called when the work is over: exit after an interrupt, else let an interrupt end the clean-up."""
    if signal.getsignal(signal.SIGINT) is not _interrupted:
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: end())
    import atexit

    if status == STATUS:
        # Python may remember an interrupt that was answered long ago, and then ends by the signal, without a status.
        atexit._run_exitfuncs()
        end()
    # Python gives the signal back to the system in the end.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end() -> NoReturn:
    try:  # noqa: SIM105 - contextlib is an import more
        sys.stdout.flush()
    except Exception:  # the interrupt came in the middle of a write, or nobody reads any more
        pass
    os._exit(STATUS)


def _interrupted(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end()
        frame = frame.f_back
    raise KeyboardInterrupt
