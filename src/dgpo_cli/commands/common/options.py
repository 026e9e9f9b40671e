"""Shared by several commands: defaults from the workspace, questions by name or file, common options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.origins import tell_origin
from dgpo_cli.console import Console
from dgpo_cli.core.device import device_name
from dgpo_cli.core.places import is_there
from dgpo_cli.core.run_names import find_run
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.core.run_dir import RunDir

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Check and print the resolved settings, then stop.")]
FreshFlag = Annotated[bool, typer.Option("--fresh", help="Start a new run even if one could go on.")]
ResumeOption = Annotated[Path | None, typer.Option(help="Go on with this run folder.")]
OutOption = Annotated[Path | None, typer.Option(help="Run folder to write; a new one under runs/ by default.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A recipe, or an earlier run's config.toml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("-o", "--set", metavar="NAME=VALUE", help="Any other setting, e.g. -o rollout.wave=16."),
]
DeviceOption = Annotated[str | None, typer.Option(callback=device_name, help="auto, cpu, cuda, cuda:1, ...")]


def within_64_bits(seed: int) -> int:
    """A seed as every library takes it. Raises ConfigError."""
    if not -(1 << 63) < seed < 1 << 63:
        raise ConfigError(f"seed {str(seed)[:20]}... is too large", hint="give a number of at most 64 bits")
    return seed


SeedOption = Annotated[int | None, typer.Option(help="Seed of every draw.")]
BenchDirOption = Annotated[
    Path | None, typer.Option(help="Folder with NAME.jsonl[.gz] and train_NAME.jsonl[.gz] instead of the hub.")
]


_NO_RUNS = ("index", "questions", "bench")  # keys whose values are never runs


ReplaceFlag = Annotated[
    bool, typer.Option("--replace", help="Make finished stages again whose settings or inputs have changed.")
]


def replacing(console: Console, replace: bool) -> Callable[[str], bool]:
    """Whether finished work may be replaced: as --replace says, or the person at the terminal."""

    def may_replace(why: str) -> bool:
        if replace or not console.interactive or console.json_output:
            return replace
        console.print(why)
        return console.ask("Make it and what follows from it again? [y/N] ").strip().lower() in ("y", "yes")

    return may_replace


def choose(console: Console, key: str, given: str | None, default: str | None = None, *, hint: str) -> str:
    """A value given, remembered or default, in that order, as `absolute`; says its origin. ConfigError without one."""
    resolved = Workspace().resolve(key, given, default)
    if resolved.value is None:
        raise ConfigError(f"no {key} given, and none remembered in this folder", hint=hint)
    if resolved.origin != "given":
        console.info(f"{key}: {resolved.value} ({resolved.origin})")
    tell_origin(console, key, resolved.value)
    return absolute(resolved.value if key in _NO_RUNS else run_or_name(resolved.value))


def run_or_name(value: str) -> str:
    """The folder of the run that is meant, or the value as it is. Raises ConfigError where several have the name."""
    from dgpo_cli.models.aliases import ALIASES

    run = None if value in ALIASES or Path(value).exists() else find_run(value)
    return value if run is None else str(run)


def choose_index(console: Console, given: str | None) -> str:
    return choose(console, "index", given, hint="build one with `dgpo index CORPUS`, or give --index DIR")


def show_settings(console: Console, settings: Any) -> dict[str, Any]:
    """The resolved settings as TOML on stdout, for --dry-run."""
    from dgpo_cli.core.config import to_toml

    values = asdict(settings)
    console.print(to_toml(values))
    return values


def tell_run(console: Console, run: RunDir, state: str = "") -> None:
    """Which run is begun or goes on, `state` saying how far it is, and which other one does not go on."""
    console.info(f"going on with {run.path}{state}" if run.resumed else f"run {run.path}")
    if run.left:
        console.info(run.left)


def absolute(path: str) -> str:
    """A location as it is recorded: an existing local path made absolute, a name or an address unchanged."""
    return str(Path(path).resolve()) if is_there(path) else path
