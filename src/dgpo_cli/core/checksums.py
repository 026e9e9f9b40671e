"""SHA-256 of files and records, which finds a bit that was flipped on a disk before the data is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.records import as_read, to_json, write_atomic
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError

READ_WHOLE = 1 << 26  # bytes of a file up to which reading all of it costs next to nothing
_BLOCK = 1 << 18  # of a larger file's sample
_BLOCKS = 64
SEAL = "sha256"
FILE = "checksums.json"  # of a folder
FILES = schema.map_of(schema.record({"bytes": schema.whole(0), "sha256": schema.text()}, {"sample": schema.text()}))
_BESIDE = schema.record({"files": FILES}, {SEAL: schema.text()})


def file_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sample_digest(path: Path) -> str:
    """Digest of blocks spread evenly over a file, the first and the last among them; of a small file, of all of it."""
    size = path.stat().st_size
    if size <= READ_WHOLE:
        return file_digest(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in range(_BLOCKS):
            stream.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def describe(directory: Path, pattern: str = "*") -> dict[str, dict[str, Any]]:
    """Size and digests of the files in a folder, by name, for `fault` to compare."""
    return {path.name: _described(path) for path in sorted(directory.glob(pattern)) if path.is_file()}


def _described(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    described = {"bytes": size, "sha256": file_digest(path)}
    return described | ({"sample": sample_digest(path)} if size > READ_WHOLE else {})


def fault(directory: Path, described: Mapping[str, Mapping[str, Any]], *, whole: bool = True) -> str:
    """A message about the first file that differs from its description; "" where none does.

    Of a large file only a sample is read, unless `whole`.
    """
    for name, entry in described.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes, {entry['bytes']} were written"
        sampled = not whole and "sample" in entry
        if (sample_digest(path) if sampled else file_digest(path)) != entry["sample" if sampled else "sha256"]:
            return f"{name} was changed after it was written (its SHA-256 differs)"
    return ""


def write_beside(directory: Path, pattern: str) -> None:
    """Describe the files of `directory` in a sealed file of it."""
    write_sealed(directory / FILE, {"files": describe(directory, pattern)})


def fault_beside(directory: Path) -> str:
    """A message about the first difference from what `write_beside` recorded; "" without a difference or a record."""
    file = directory / FILE
    if not file.is_file():
        return ""
    try:
        record = schema.require(parse_json(file.read_bytes(), FILE), _BESIDE)
    except (InputError, schema.Mismatch) as error:
        return f"{FILE} is damaged ({getattr(error, 'message', error)})"
    if is_broken(record):
        return f"{FILE} was changed after it was written (its SHA-256 differs)"
    return fault(directory, record["files"], whole=False)


def write_sealed(file: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object that `is_broken` can check when it is read."""
    write_atomic(file, to_json(sealed(record), indent=1, ensure_ascii=True) + "\n")


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of the rest of it."""
    return dict(record) | {SEAL: _digest(record)}


def is_broken(record: Mapping[str, Any]) -> bool:
    """True if a sealed object was changed after it was sealed; an object without a seal counts as intact."""
    return SEAL in record and record[SEAL] != _digest({k: v for k, v in record.items() if k != SEAL})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_read(record), sort_keys=True).encode()).hexdigest()
