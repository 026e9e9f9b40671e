"""Schemas of records from outside: declared once per record as a `Kind`, checked by one function.

    RUN = record({"command": text(), "status": one_of("running", "finished"), "seed": maybe(whole())})
    check(value, RUN, "runs/rl-0001/run.json", hint="move the folder away")

A kind reports the first fault in a value: its place and what is allowed there. Lists of numbers, which hold the tokens
of whole episodes, are checked without a Python loop.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.untrusted import LARGEST_RECORD, parse_json, read_bytes
from dgpo_cli.errors import DgpoError, InputError

_LARGEST = (1 << 63) - 1
_SHOWN = 60  # characters of a value in a message


class Mismatch(ValueError):
    """A value is not of its kind; the message is the reason, such as "`sample` is -1, not a whole number from 0"."""


@dataclass(frozen=True, slots=True)
class FieldKind:
    """`fault(value, where)` is "" or what is wrong; `expected` reads like "a text"."""

    expected: str
    fault: Callable[[Any, str], str]


def check(
    value: Any, kind: FieldKind, place: str, *, hint: str | None = None, error: type[DgpoError] = InputError
) -> Any:
    """The value, if it is a record of `kind`. Raises `error`, which names place, field, and allowed values."""
    try:
        return require(value, kind)
    except Mismatch as problem:
        raise error(f"{place}: {problem}", hint=hint) from None


def read_record(
    path: Path, kind: FieldKind, *, hint: str, error: type[DgpoError] = InputError, most: int = LARGEST_RECORD
) -> Any:
    """The one JSON value of a file of up to `most` bytes. Raises `error`: "PATH is damaged: ..."."""
    try:
        value = parse_json(read_bytes(path, most), f"{path} is damaged")
    except InputError as problem:
        unread = isinstance(problem.__cause__, OSError)  # which says nothing against its content
        raise error(problem.message, hint=problem.hint if unread else hint) from problem
    return check(value, kind, f"{path} is damaged", hint=hint, error=error)


def require(value: Any, kind: FieldKind) -> Any:
    """The value, if it is of the kind. Raises Mismatch, to which the caller adds the place."""
    if problem := kind.fault(value, ""):
        raise Mismatch(problem)
    return value


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        written = repr(value)
    except ValueError:  # a whole number of thousands of digits
        written = "a huge number"
    return written if len(written) <= _SHOWN else written[: _SHOWN - 3] + "..."


def _simple(expected: str, holds: Callable[[Any], bool]) -> FieldKind:
    return FieldKind(
        expected, lambda value, where: "" if holds(value) else f"{_field(where)} is {shown(value)}, not {expected}"
    )


def _field(where: str) -> str:
    return f"`{where}`" if where else "it"


ANYTHING = FieldKind("anything", lambda _value, _where: "")
FLAG = _simple("true or false", lambda value: isinstance(value, bool))


def text(*, empty: bool = True, longest: int = _LARGEST) -> FieldKind:
    size = "" if longest == _LARGEST else f" of at most {longest:,} characters"
    return _simple(
        f"{'a' if empty else 'a non-empty'} text{size}",
        lambda value: isinstance(value, str) and (empty or value.strip() != "") and len(value) <= longest,
    )


def letters(allowed: str) -> FieldKind:
    known = set(allowed)
    return _simple(f"a text of {' and '.join(allowed)}", lambda value: isinstance(value, str) and set(value) <= known)


def whole(least: int = -_LARGEST, most: int = _LARGEST) -> FieldKind:
    return _simple(_range("a whole number", least, most), lambda value: type(value) is int and least <= value <= most)


def number(least: float = -math.inf, most: float = math.inf) -> FieldKind:
    """A finite one; whole numbers count."""
    return _simple(_range("a finite number", least, most), lambda value: is_number(value) and least <= value <= most)


def is_number(value: Any) -> bool:
    """A finite one that a float can hold; true and false are none."""
    if type(value) is int:
        return -_LARGEST <= value <= _LARGEST
    return type(value) is float and math.isfinite(value)


def _range(what: str, least: float, most: float) -> str:
    low = "" if least in (-_LARGEST, -math.inf) else f" from {least}"
    high = "" if most in (_LARGEST, math.inf) else f" to {most}"
    return f"{what}{low}{high}"


def one_of(*values: str) -> FieldKind:
    return _simple(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def maybe(kind: FieldKind) -> FieldKind:
    """The kind, or null."""
    expected = f"{kind.expected} or null"

    def fault(value: Any, where: str) -> str:
        return "" if value is None else kind.fault(value, where)

    return FieldKind(expected, fault)


def either(*kinds: FieldKind) -> FieldKind:
    expected = " or ".join(kind.expected for kind in kinds)
    return _simple(expected, lambda value: any(not kind.fault(value, "") for kind in kinds))


def list_of(kind: FieldKind, *, least: int = 0) -> FieldKind:
    expected = f"a list{f' of at least {least}' if least else ''} ({kind.expected})"

    def fault(value: Any, where: str) -> str:
        if not isinstance(value, list) or len(value) < least:
            return f"{_field(where)} is {shown(value)}, not {expected}"
        return next((found for place, item in enumerate(value) if (found := kind.fault(item, f"{where}[{place}]"))), "")

    return FieldKind(expected, fault)


def tuple_of(*kinds: FieldKind) -> FieldKind:
    """A list of one item of each kind."""
    expected = f"a list of {len(kinds)} ({', '.join(kind.expected for kind in kinds)})"

    def fault(value: Any, where: str) -> str:
        if not isinstance(value, list) or len(value) != len(kinds):
            return f"{_field(where)} is {shown(value)}, not {expected}"
        pairs = enumerate(zip(kinds, value, strict=True))
        return next((found for place, (kind, item) in pairs if (found := kind.fault(item, f"{where}[{place}]"))), "")

    return FieldKind(expected, fault)


def texts() -> FieldKind:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and set(map(type, value)) <= {str}

    return _list("a list of texts", holds, text())


def whole_numbers(least: int, most: int = _LARGEST) -> FieldKind:
    expected = f"a list of {_range('whole numbers', least, most)}"

    def holds(value: Any) -> bool:
        if not isinstance(value, list) or not set(map(type, value)) <= {int}:
            return False
        return not value or (least <= min(value) and max(value) <= most)

    return _list(expected, holds, whole(least, most))


def numbers(least: float = -math.inf, most: float = math.inf) -> FieldKind:
    """Finite ones."""
    expected = f"a list of {_range('finite numbers', least, most)}"

    def holds(value: Any) -> bool:
        if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
            return False
        # A sum would overflow; NaN compares with nothing, so it is looked for by itself.
        return not value or (all(map(is_number, value)) and least <= min(value) and max(value) <= most)

    return _list(expected, holds, number(least, most))


def _list(expected: str, holds: Callable[[Any], bool], item: FieldKind) -> FieldKind:
    """A list checked as a whole; only where it fails item by item, for the message."""

    def fault(value: Any, where: str) -> str:
        if holds(value):
            return ""
        return list_of(item).fault(value, where) or f"{_field(where)} is {shown(value)}, not {expected}"

    return FieldKind(expected, fault)


def map_of(kind: FieldKind, *, least: int = 0) -> FieldKind:
    """An object whose every value is of one kind, of `least` entries or more."""
    expected = f"an object{f' of at least {least}' if least else ''} ({kind.expected} by name)"

    def fault(value: Any, where: str) -> str:
        if not isinstance(value, dict) or len(value) < least:
            return f"{_field(where)} is {shown(value)}, not {expected}"
        return next((found for name, item in value.items() if (found := kind.fault(item, _inside(where, name)))), "")

    return FieldKind(expected, fault)


def record(
    fields: Mapping[str, FieldKind],
    optional: Mapping[str, FieldKind] | None = None,
    *,
    other: FieldKind | None = ANYTHING,
    also: Callable[[dict[str, Any]], str] | None = None,
) -> FieldKind:
    """An object with `fields`, perhaps `optional` ones, and others of kind `other` (None: no others).

    `also` checks fields together, once each is of its kind, and returns "" or the fault.
    """
    every = dict(fields) | dict(optional or {})

    def fault(value: Any, where: str) -> str:
        if not isinstance(value, dict):
            return f"{_field(where)} is {shown(value)}, not an object"
        for name in fields:
            if name not in value:
                return f"{_field(_inside(where, name))} is missing"
        for name, item in value.items():
            kind = every.get(name, other)
            if kind is None:
                return f"{_field(_inside(where, name))} is not known"
            if kind is not ANYTHING and (found := kind.fault(item, _inside(where, name))):
                return found
        return also(value) if also is not None else ""

    return FieldKind("an object", fault)


def of(cls: type, *, other: FieldKind | None = None, **kinds: FieldKind) -> FieldKind:
    """The kind of a dataclass as `asdict` writes it: by its type hints, or by narrower kinds given by name."""
    hints = typing.get_type_hints(cls)
    every = {f.name: kinds.get(f.name) or _by_hint(hints[f.name]) for f in fields(cls)}
    optional = {f.name for f in fields(cls) if f.default is not MISSING or f.default_factory is not MISSING}
    return record(
        {name: kind for name, kind in every.items() if name not in optional},
        {name: kind for name, kind in every.items() if name in optional},
        other=other,
    )


def _by_hint(hint: Any) -> FieldKind:
    plain = {str: text(), int: whole(), float: number(), bool: FLAG, Any: ANYTHING, object: ANYTHING}
    if hint in plain:
        return plain[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [one for one in inner if one is not type(None)]
        return maybe(_by_hint(kind))
    if origin in (dict, Mapping):
        return map_of(_by_hint(inner[1]))
    if origin in (list, tuple, Sequence):
        return list_of(_by_hint(inner[0]))
    if is_dataclass(hint):
        return of(typing.cast(type, hint))
    raise TypeError(f"no kind for {hint!r}")


def _inside(where: str, name: object) -> str:
    short = str(name)[:_SHOWN]
    return f"{where}.{short}" if where else short
