"""Settings as frozen dataclasses: from TOML and `-o key=value`, with errors that name the nearest key."""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dgpo_cli.core.registry import is_outside
from dgpo_cli.core.schema import shown
from dgpo_cli.core.untrusted import LARGEST_RECORD, decoded, read_bytes
from dgpo_cli.errors import ConfigError, InputError

T = TypeVar("T")
_LARGEST = (1 << 63) - 1  # what TOML, records, and the libraries beneath can hold


@dataclass(frozen=True, slots=True)
class FieldNote:
    """One setting as `--describe` and the docs show it."""

    name: str
    type: str
    default: Any
    source: str
    help: str


# Above 0; 0 or more; 0 or more, infinite too; from 0 up to below 1; from 0 to 1; any number.
Range = Literal["positive", "not negative", "bound", "share", "up to 1", "finite"]


def note(help: str = "", *, source: str = "", range: Range | None = None) -> dict[str, str]:
    """Metadata of a setting: `source` says where its default is from, `range` what `require_ranges` asks of it.

    A subclass that changes the default of a setting inherits the metadata that it does not state itself.
    """
    said = {"help": help, "source": source, "range": range}
    return {name: value for name, value in said.items() if value}


def setting(default: T, help: str = "", *, source: str = "", range: Range | None = None) -> T:
    """A field of a settings dataclass with its default and `note`."""
    value: T = field(default=default, metadata=note(help, source=source, range=range))
    return value


def require_ranges(settings: object) -> None:
    """Raises ConfigError for a number out of its range; None is in every one, and no range has a NaN."""
    for name, metadata in _metadata(type(settings)).items():
        value = getattr(settings, name)
        if not isinstance(value, int | float):  # a word may stand in the place of a number
            continue
        if "range" in metadata and _LARGEST < value < math.inf:
            raise ConfigError(f"{name} = {value:g} is too large", hint=f"give {name} a smaller value")
        match metadata.get("range"):
            case "positive" if not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value} is not positive", hint=f"give {name} a value above 0")
            case "not negative" if not 0 <= value < math.inf:
                raise ConfigError(f"{name} = {value} is negative", hint=f"give {name} 0 or more")
            case "bound" if not value >= 0:
                raise ConfigError(f"{name} = {value} is negative", hint=f"give {name} 0 or more")
            case "finite" if not math.isfinite(value):
                raise ConfigError(f"{name} = {value} is no number", hint=f"give {name} a number")
            case "up to 1" if not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value} is out of range", hint=f"give {name} from 0 to 1")
            case "share" if not 0 <= value < 1:
                raise ConfigError(f"{name} = {value}", hint=f"give {name} a value from 0 up to below 1")


def _metadata(cls: type) -> dict[str, dict[str, Any]]:
    """Metadata by field, merged over the class and its bases."""
    merged: dict[str, dict[str, Any]] = {f.name: {} for f in fields(cls)}
    for base in reversed(cls.__mro__):
        for name, found in vars(base).get("__dataclass_fields__", {}).items():
            merged[name] |= found.metadata
    return merged


def load_toml(path: Path) -> dict[str, Any]:
    """Raises ConfigError naming the file and what is wrong with it."""
    hint = "give a TOML file, such as the config.toml of a run"
    try:
        return tomllib.loads(decoded(read_bytes(path, LARGEST_RECORD), str(path)))
    except InputError as error:
        raise ConfigError(error.message, hint=hint) from error
    except (ValueError, RecursionError) as error:  # also of a whole number of thousands of digits
        raise ConfigError(f"{path}: {error}", hint=hint) from error


def flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"objective": {"beta": 0.1}} as {"objective.beta": 0.1}, as -o writes it."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """["objective.beta=0.1", "seed=3"] to {"objective": {"beta": "0.1"}, "seed": "3"}; values stay strings."""
    result: dict[str, Any] = {}
    for option in options:
        path, separator, value = option.partition("=")
        section, _, outside = path.partition(".")  # reward.package.module:Attribute
        keys = [key.strip() for key in ([section, outside] if is_outside(outside.strip()) else path.split("."))]
        if not separator or not all(keys):
            raise ConfigError(f"-o {option!r} is not key=value", hint="write it like -o NAME=VALUE")
        place = result
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"-o {option!r}: {key} is a value and a section at once", hint="give each key once")
        if keys[-1] in place:
            raise ConfigError(f"-o {option!r}: {path.strip()} is given twice", hint="give each key once")
        place[keys[-1]] = value.strip()
    return result


def apply_options(cls: type[T], options: Mapping[str, Any]) -> T:
    """An instance of the frozen dataclass `cls` with `options` over its defaults; strings are parsed by field type.

    Raises ConfigError for an unknown key (naming the nearest), a missing one, or a value that does not parse.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)
            raise ConfigError(
                f"{cls.__qualname__.replace('.Config', '')} has no option {key!r}",
                hint=f"did you mean: {', '.join(near)}" if known else "it has no options",
            )
        values[key] = _convert(value, hints[key], key)
    missing = [n for n, f in known.items() if n not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ConfigError(f"{cls.__qualname__} needs {', '.join(missing)}", hint="give a value for each")
    return cls(**values)


def _convert(value: Any, hint: Any, key: str) -> Any:
    for kind in _alternatives(hint):
        try:
            return _convert_one(value, kind, key)
        except (ValueError, TypeError):
            continue
    raise ConfigError(f"{key} = {shown(value)} is not {_name(hint)}", hint=f"give {key} as {_name(hint)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, None first: the word `none` is the absence of a value wherever that is allowed."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,)
    return tuple(sorted(typing.get_args(hint), key=lambda kind: kind is not type(None)))


def _convert_one(value: Any, kind: Any, key: str) -> Any:
    """Raises ValueError or TypeError if `value` is no `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return value
    if kind is type(None) and value in (None, "none", "None"):
        return None
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is int and isinstance(value, int | str) and not isinstance(value, bool):
        return _whole(value, key)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value)
        if math.isnan(number):
            raise ValueError(value)
        return number
    if kind in (str, Path) and isinstance(value, str | Path):
        return kind(value)
    if origin is typing.Literal:
        return arguments[[str(choice) for choice in arguments].index(str(value))]
    if origin is tuple:
        return _convert_tuple(value, arguments, key)
    if (kind is dict or origin is dict) and isinstance(value, Mapping):
        of = arguments[1] if arguments else Any
        return {name: _convert(item, of, f"{key}.{name}") for name, item in value.items()}
    if is_dataclass(kind) and isinstance(value, Mapping):
        return apply_options(typing.cast(type, kind), value)
    raise ValueError(value)


def _whole(value: int | str, key: str) -> int:
    """Raises ValueError for no whole number, ConfigError for one of more than 64 bits."""
    number = int(value)
    if not -_LARGEST <= number <= _LARGEST:
        raise ConfigError(f"{key} = {shown(value)} is too large", hint="give a number of at most 64 bits")
    return number


def _convert_tuple(value: Any, arguments: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """`tuple[X, ...]` or `tuple[X, Y]` from a list, or from comma-separated text."""
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(parts)
    return tuple(_convert(part, kind, key) for part, kind in zip(parts, arguments, strict=True))


def _name(hint: Any) -> str:
    """A type as the user reads it: `float`, `'kd' or 'seqkd'`, `int or none`."""
    names = [_name_one(kind) for kind in reversed(_alternatives(hint))]
    return " or ".join(names)


def _name_one(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if kind is type(None):
        return "none"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def describe(cls: type) -> list[FieldNote]:
    """The settings of a dataclass in order, with the `source` and `help` of their metadata."""
    hints, metadata = typing.get_type_hints(cls), _metadata(cls)
    return [
        FieldNote(
            f.name,
            _name(hints[f.name]),
            f.default_factory() if f.default_factory is not MISSING else f.default,
            metadata[f.name].get("source", ""),
            metadata[f.name].get("help", ""),
        )
        for f in fields(cls)
    ]


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML that `load_toml` reads back: scalars, paths, lists and tables; None is left out."""
    import tomli_w

    return tomli_w.dumps(_writable(values))


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _writable(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
