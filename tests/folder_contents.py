"""What a folder holds, without what two undisturbed runs differ in, and the first difference between two of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

# What differs between two undisturbed runs, by name of a field.
_VOLATILE = re.compile(r"seconds|per_second|created|finished|^at$|versions|git_commit|gib|memory")
_LAST_BITS = 1e-5  # of a log-probability in single precision


def contents(folder: Path) -> dict[str, Any]:
    """Every file by its name, without what depends on the clock; records by their keys, not by their order."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".jsonl":
            rows = [_plain(json.loads(line)) for line in path.read_bytes().splitlines()]
            if all(isinstance(row, dict) for row in rows):
                rows.sort(key=lambda row: (row.get("key", ""), row.get("step", 0), sorted(row)))
            found[name] = rows
        elif path.suffix == ".json":
            value = _plain(json.loads(path.read_bytes()))
            if path.name in ("state.json", "manifest.json"):  # sealed with the seconds in it
                value.pop("sha256")
            found[name] = value
        elif path.suffix == ".png":  # over seconds
            found[name] = "picture"
        elif path.suffix == ".md":
            found[name] = re.sub(r"[\d.]+ s\b", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def difference(whole: dict[str, Any], found: dict[str, Any]) -> str:
    """The first that differs, or ""."""
    if left := sorted(found.keys() - whole.keys()):
        return f"left over: {left[:5]}"
    if missing := sorted(whole.keys() - found.keys()):
        return f"missing: {missing[:5]}"
    changes = {name: _change(value, found[name]) for name, value in whole.items() if value != found[name]}
    if "" in changes.values():  # last bits of what other runs were made from, and so their digests of it
        for name in (name for name, change in changes.items() if change.startswith((".digest was", ".inputs."))):
            changes[name] = _change(*(_without_digests(side[name]) for side in (whole, found)))
    return next((f"{name}: {change}" for name, change in changes.items() if change), "")


def _without_digests(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"digest": "", "inputs": sorted(record.get("inputs", {}))}


def _change(one: Any, other: Any, place: str = "") -> str:
    """The first place where two values differ.

    A log-probability may by its last bits, which depend on the episodes that ran beside its own; tokens may not.
    """
    if one == other:
        return ""
    if "logprob" in place and isinstance(one, float) and isinstance(other, float):
        return "" if math.isclose(one, other, abs_tol=_LAST_BITS) else f"{place} was {one}, is {other}"
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for k in one if (found := _change(one[k], other[k], f"{place}.{k}"))), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for n, (a, b) in pairs if (found := _change(a, b, f"{place}[{n}]"))), "")
    return f"{place} was {str(one)[:200]}, is {str(other)[:200]}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not _VOLATILE.search(k)}
    return [_plain(item) for item in value] if isinstance(value, list) else value
