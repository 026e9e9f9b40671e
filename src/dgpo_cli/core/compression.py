"""Compressed files as streams of lines, by the end of their name: .gz and .zst."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

SUFFIXES = (".gz", ".zst")
# Raised while a stream of `decompressing` is read: the file is cut short, or is not compressed in this form.
ERRORS = (OSError, EOFError, zlib.error)
_BUFFER = 1 << 20


def decompressing(raw: BinaryIO, name: Path) -> BinaryIO:
    """`raw`, decompressed if the ending of `name` says so. Reading raises one of ERRORS if `raw` is damaged."""
    if name.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if name.suffix == ".zst":
        import pyarrow  # its zstd reads what is cut into frames, too, and it is there for Parquet anyway

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), _BUFFER)
    return raw


def plain_name(path: Path) -> str:
    """The file's name without the ending of a compression."""
    return path.stem if path.suffix in SUFFIXES else path.name
