"""Memory of this machine that a process has freed and still holds."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what is free to the system, wherever it lies in the heap; nothing where the C library is not glibc.

    glibc by itself gives back only the end of its heap, and after a pass something small lies there.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
