"""Whether a folder in which stages make one thing from another is theirs: parts of it are replaced and deleted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.core import schema
from dgpo_cli.core.folders import require_place
from dgpo_cli.errors import ConfigError

FOLDERS = ("world", "index", "models", "runs")
FILES = ("demonstrations.jsonl", "reading.jsonl", "results.json", "budgets.json")
MARK = ".stages"  # of a folder whose parts were made here

_WORLD = schema.record({"digest": schema.text()}, {"seed": schema.maybe(schema.whole())})


@dataclass(frozen=True, slots=True)
class MadeWorld:
    """What a world was made from."""

    digest: str
    seed: int | None  # where one is drawn


def made_world(folder: Path) -> MadeWorld | None:
    """The one whose files lie in `folder`; None without a world. Raises InputError where its record is damaged."""
    stamp = folder / "world.json"
    if not stamp.is_file():
        return None
    made = schema.read_record(stamp, _WORLD, hint=f"delete {stamp}")
    return MadeWorld(made["digest"], made.get("seed"))


def require_stages_place(*folders: Path) -> None:
    """Makes nothing. Raises OSError where no folder can be made, ConfigError where one is there that is not theirs."""
    for folder in folders:
        require_place(folder)
        require_own(folder)


def require_own(folder: Path) -> None:
    """Raises ConfigError where parts of it are somebody else's; a folder of earlier versions is known by its world."""
    if (folder / MARK).is_file():
        return
    theirs = [part for part in (*FOLDERS, *FILES) if (folder / part).exists()]
    if theirs and made_world(folder / "world") is None:
        raise ConfigError(
            f"{folder / theirs[0]} was not made by this command, which would replace it",
            hint="give --out a folder that does not exist yet",
        )
