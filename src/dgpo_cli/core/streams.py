"""Standard streams that the caller has closed (`>&-`, some schedulers): their numbers stay taken.

Otherwise the next file that is opened, a model or a lock, would get the number of standard output, and whatever a
library prints would be written into it. Imports next to nothing, since it comes before everything else.
"""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Put nowhere in the place of each: nothing to read, and nobody who sees what is written."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            errors = "backslashreplace" if mode == "w" else None
            stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115 - it stays
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def flush() -> OSError | None:
    """Write out what the streams hold; returns why the rest of standard output is lost, if it is.

    A stream that takes nothing more (a full disk, a reader that has gone) leads nowhere from then on: Python would try
    again at its end, complain, and change the status.
    """
    lost = None
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            lost = error if stream is sys.stdout else None
    return lost
