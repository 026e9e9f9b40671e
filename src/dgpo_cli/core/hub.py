"""Whether the model hub answers, asked once: its library would retry every file for half a minute."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dgpo_cli.core.http import opener
from dgpo_cli.errors import ModelError, first_line

TIMEOUT_S = 4.0


@cache
def unreachable() -> str | None:
    """Why nothing can be fetched, as the end of a sentence; None if the hub answers. Asked once per process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        opener().open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except urllib.error.URLError as error:
        return f"{constants.ENDPOINT} does not answer ({error.reason})"
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT} does not answer ({error})"
    return None


def cached(repo: str, file: str) -> str | None:
    """Path of a repository's file in the hub library's cache; None if it is not there. Raises ValueError for no id."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    return found if isinstance(found, str) else None


def absent(name: str) -> str | None:
    """Why a folder or a repository of the hub is no model that can be had; None where that is not known beforehand.

    Without a library that computes: those take seconds to import.
    """
    folder = Path(name)
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else "it has no config.json"
    reason = unreachable()
    try:
        return None if reason is None or cached(name, "config.json") else f"it is not cached, and {reason}"
    except ValueError as error:
        return first_line(error)


@contextmanager
def without_pickle() -> Iterator[None]:
    """Refuse weights that are no safetensors: a list of shards may name any file, and transformers unpickles those of
    other kinds even where safetensors are asked for. Raises ModelError.
    """
    import torch

    def refuse(file: object, *_: object, **__: object) -> None:
        raise ModelError(
            f"{getattr(file, 'name', file)} is no safetensors file, and other weights are never read",
            hint="convert it, or take another revision of it",
        )

    library: Any = torch
    before = library.load
    library.load = refuse
    try:
        yield
    finally:
        library.load = before


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars and reports while weights are read; the caller reports what matters."""
    from transformers.utils import logging as reports

    logger = logging.getLogger("transformers")
    level, bars = logger.level, reports.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            reports.enable_progress_bar()
