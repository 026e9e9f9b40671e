"""Runs by name: which ones lie below a folder, and which one a name means.

The name of a run is the shortest end of its path that no other run has: `rl-0001` of this folder's `runs/`, `eval-dgpo`
of `quickstart/runs/`, `quickstart/kd` where another folder has a `kd` too. The folder `runs` need not be written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dgpo_cli.errors import ConfigError

ROOT = Path("runs")
_DEEPEST = 6  # ours; reproduce/fair/seed-0/runs/search/NAME is the deepest that the program makes
_MOST_FOLDERS = 5000  # ours; looked into, nearest first, so that a name is found soon in a home folder too


def find_runs(root: Path = Path()) -> list[Path]:
    """Run folders below `root`, in the order of their paths; hidden folders and links to folders are passed over."""
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    level, looked = [root], 0
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            looked += 1
            if looked > _MOST_FOLDERS:
                return
            names, folders = _content(folder)
            if "run.json" in names:
                yield folder
            elif not names & {"pyvenv.cfg", "manifest.json", "config.json"}:  # no runs in an environment, index, model
                below += folders
        level = below


def _content(folder: Path) -> tuple[set[str], list[Path]]:
    """Names of the files and the folders to look into; of a folder that cannot be read, nothing."""
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.is_dir(follow_symlinks=False)) for e in entries if not e.name.startswith(".")]
    except OSError:
        return set(), []
    return {name for name, is_folder in found if not is_folder}, [
        folder / name for name, is_folder in found if is_folder
    ]


def find_run(name: str | Path, root: Path = ROOT) -> Path | None:
    """The run folder that `name` means: a path, a run of `root`, or one below this folder; None if there is none.

    Raises ConfigError that lists the choices where several have the name.
    """
    given = Path(name).expanduser()
    for place in (given, root / name):
        if (place / "run.json").is_file():
            return place
    wanted = _spoken(given)
    if given.exists() or given.is_absolute() or not wanted or ".." in wanted:
        return None
    found = [path for path in find_runs() if _spoken(path)[-len(wanted) :] == wanted]
    exact = [path for path in found if _spoken(path) == wanted]
    if len(exact or found) > 1:
        raise ConfigError(
            f"several runs are called {name}", hint=f"write one of: {', '.join(map(str, exact or found))}"
        )
    return next(iter(exact or found), None)


def short_names(paths: Sequence[Path]) -> list[str]:
    """For each path its shortest end that no other path has."""
    spoken = [_spoken(path) for path in paths]
    names = []
    for parts in spoken:
        length = next(
            (n for n in range(1, len(parts)) if sum(other[-n:] == parts[-n:] for other in spoken) == 1), len(parts)
        )
        names.append("/".join(parts[-length:]))
    return names


def _spoken(path: Path) -> tuple[str, ...]:
    return tuple(part for part in path.parts if part not in ("runs", "/"))
