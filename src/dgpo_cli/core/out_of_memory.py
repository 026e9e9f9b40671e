"""Whether an error says that memory ran out, on a CPU or on a GPU, without importing the library that raised it."""

from __future__ import annotations

import errno

_SAYS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "cannot allocate memory",
    "unable to allocate",
    "alloc_failed",
    "failed to map segment",  # of a library that is imported
)


def is_out_of_memory(error: BaseException) -> bool:
    """Also where it was raised from another one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return True
        if isinstance(seen, RuntimeError | ImportError) and any(text in str(seen).lower() for text in _SAYS):
            return True
        seen = seen.__cause__
    return False
