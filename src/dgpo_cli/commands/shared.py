"""What several commands do alike: defaults from the workspace, questions by name or file, common options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.console import Console
from dgpo_cli.core.config import apply_options, parse_options
from dgpo_cli.core.recipes import merged
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import ConfigError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Check and print the resolved settings, then stop.")]
FreshFlag = Annotated[bool, typer.Option("--fresh", help="Start a new run even if one could go on.")]
ResumeOption = Annotated[Path | None, typer.Option(help="Go on with this run folder.")]
OutOption = Annotated[Path | None, typer.Option(help="Run folder to write; a new one under runs/ by default.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A recipe, or an earlier run's config.toml.")]
SetOption = Annotated[
    list[str] | None, typer.Option("-o", "--set", help="Any other setting, e.g. -o objective.kl_coef=0.1.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of every draw.")]
BenchDirOption = Annotated[
    Path | None, typer.Option(help="Folder with NAME.jsonl[.gz] and train_NAME.jsonl[.gz] instead of the hub.")
]


def choose(console: Console, key: str, given: str | None, default: str | None = None, *, hint: str) -> str:
    """A value given, remembered or default, in that order; says where it is from. ConfigError if there is none."""
    resolved = Workspace().resolve(key, given, default)
    if resolved.value is None:
        raise ConfigError(f"no {key} was given and none is remembered in this folder", hint=hint)
    if resolved.origin != "given":
        console.info(f"{key}: {resolved.value} ({resolved.origin})")
    return resolved.value


def choose_index(console: Console, given: str | None) -> str:
    return absolute(choose(console, "index", given, hint="build one with `dgpo index CORPUS`, or give --index DIR"))


def settings_from(
    kind: Callable[..., Any],
    command: str,
    *,
    config: Mapping[str, Any],
    options: Sequence[str] | None,
    values: Mapping[str, Any],
) -> Any:
    """Settings of `kind`: those of --config, then -o, then flags that were given (not None).

    Raises ConfigError for a setting that the command does not have.
    """
    assert isinstance(kind, type) and is_dataclass(kind)
    given = {name: value for name, value in values.items() if value is not None}
    chosen = merged(merged(config, parse_options(options or ())), given)
    try:
        return apply_options(kind, chosen)
    except ConfigError as error:
        raise ConfigError(error.message.replace(kind.__qualname__, f"`dgpo {command}`"), error.hint) from error


def show_settings(console: Console, settings: Any) -> dict[str, Any]:
    """The resolved settings as TOML on stdout, for --dry-run."""
    from dgpo_cli.core.config import to_toml

    values = asdict(settings)
    console.print(to_toml(values))
    return values


def absolute(path: str) -> str:
    """A location as it is recorded: an existing local path made absolute, a name or an address unchanged."""
    return str(Path(path).resolve()) if Path(path).exists() else path
