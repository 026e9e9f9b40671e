"""Arrays larger than memory: .npy files that are mapped, to be filled or to be read."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.disk import reserve


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in `path`, to be written to through the array, which may not be empty. Raises OSError on a full disk."""
    kind = np.dtype(dtype)
    with open(path, "wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        reserve(stream, stream.tell() + prod(shape) * kind.itemsize)
    array: np.ndarray = np.load(path, mmap_mode="r+", allow_pickle=False)
    return array


def open_array(path: Path) -> np.ndarray:
    """Raises OSError, and ValueError if it is no array of numbers as `new_array` writes one."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy reads a header with Python's parser, which has many
        raise ValueError("not an array of numbers, or its header is damaged") from error
    return array
