"""Processes that this program starts do not outlive it, also where it is killed and can end nobody."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """Called first in a process of `multiprocessing`: from now on it ends when the process that started it does.

    On every system a thread waits for the end of the pipe that only the parent holds. Linux also kills the child by
    itself, at once and whatever holds Python's lock; there the parent is the thread that started it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
