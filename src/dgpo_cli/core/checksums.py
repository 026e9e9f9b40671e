"""SHA-256 of files and records, so that a bit that was flipped on a disk is found before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core.records import as_read

READ_WHOLE = 1 << 26  # bytes of a file up to which reading all of it costs next to nothing
_BLOCK = 1 << 18  # of a larger file's sample
_BLOCKS = 64
_SEAL = "sha256"


def file_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sample_digest(path: Path) -> str:
    """Of blocks spread evenly over a file, the first and the last among them; of all of a small one."""
    size = path.stat().st_size
    if size <= READ_WHOLE:
        return file_digest(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in range(_BLOCKS):
            stream.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def describe(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of the files in a folder, by name, for `fault` to compare."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


def fault(directory: Path, described: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with the first file that is not as it was described, "" where all are."""
    for name, entry in described.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes, {entry['bytes']} were written"
        if file_digest(path) != entry["sha256"]:
            return f"{name} was changed after it was written (its SHA-256 differs)"
    return ""


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of the rest of it."""
    return dict(record) | {_SEAL: _digest(record)}


def is_broken(record: Mapping[str, Any]) -> bool:
    """A sealed object is not the one that was sealed; one without a seal is taken as it is."""
    return _SEAL in record and record[_SEAL] != _digest({k: v for k, v in record.items() if k != _SEAL})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_read(record), sort_keys=True).encode()).hexdigest()
