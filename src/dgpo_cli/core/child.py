"""Ends child processes with this program, also where it is killed and cannot end them itself."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """Make this process, one of `multiprocessing`, end when its parent ends; to be called first.

    On every system a thread waits for the end of the pipe that only the parent holds. Linux also kills the child
    itself, at once, even while another thread holds Python's lock; to Linux the parent is the thread that started it.
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
