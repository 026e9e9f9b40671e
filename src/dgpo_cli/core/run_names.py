"""Runs by name: which ones lie below a folder, and which one a name means.

The name of a run is the shortest end of its path that no other run has: `rl-0001` of this folder's `runs/`, `eval-dgpo`
of `quickstart/runs/`, `quickstart/kd` where another folder has a `kd` too. The folder `runs` need not be written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from dgpo_cli.errors import ConfigError

ROOT = Path("runs")
_DEEPEST = 6  # ours; reproduce/fair/seed-0/runs/search/NAME is the deepest that the program makes
_MOST_FOLDERS = 5000  # ours; looked into, nearest first, so that a name is found soon in a home folder too


def find_runs(root: Path = Path()) -> list[Path]:
    """Run folders below `root`, in the order of their paths, each once; hidden folders are passed over.

    Links are followed where they are called `runs` or lead to a run, as where runs were moved to a larger disk.
    """
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    level, looked = [root], 0
    links: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            looked += 1
            if looked > _MOST_FOLDERS:
                return
            names, folders, linked = _content(folder)
            links += linked
            if "run.json" in names:
                seen.add(_identity(folder))
                yield folder
            elif not names & {"pyvenv.cfg", "manifest.json", "config.json"}:  # no runs in an environment, index, model
                below += folders
        level = below
    links.sort(key=lambda link: ROOT.name not in (link.name, link.parent.name))
    for link in links:  # last, so that a run is known by its own name
        inside = [link] if link.name != ROOT.name else [link / folder.name for folder in _content(link)[1]]
        for folder in inside:
            with suppress(OSError):  # it leads nowhere, or where one may not read
                if (folder / "run.json").is_file() and (key := _identity(folder)) not in seen:
                    seen.add(key)
                    yield folder


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _content(folder: Path) -> tuple[set[str], list[Path], list[Path]]:
    """Names of the files, the folders to look into, and links; of a folder that cannot be read, nothing."""
    names: set[str] = set()
    folders, links = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(folder / entry.name)
                else:
                    names.add(entry.name)
                if entry.is_symlink():
                    links.append(folder / entry.name)
    except OSError:
        return set(), [], []
    return names, folders, links


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
    """For each path its shortest end that no other path has; of the folder one is in, and of `runs`, the path itself.

    A name is no option: ./ stands before one that begins like that.
    """
    spoken = [_spoken(path) for path in paths]
    names = []
    for path, parts in zip(paths, spoken, strict=True):
        length = next(
            (n for n in range(1, len(parts)) if sum(other[-n:] == parts[-n:] for other in spoken) == 1), len(parts)
        )
        name = "/".join(parts[-length:]) or str(path)
        names.append(f"./{name}" if name.startswith("-") else name)
    return names


def _spoken(path: Path) -> tuple[str, ...]:
    return tuple(part for part in path.parts if part not in ("runs", "/"))
