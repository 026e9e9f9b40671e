"""The index that questions are made from, and their author."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.commands.common.options import absolute, choose
from dgpo_cli.commands.common.teacher import teacher_values
from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.core.figures import counted
from dgpo_cli.core.places import portable
from dgpo_cli.errors import ConfigError


def choose_author(
    console: Console, before: Mapping[str, Any], no_model: bool | None, given: Mapping[str, str | None]
) -> dict[str, Any]:
    """The settings that name the teacher, or that there is none. Raises ConfigError for both."""
    named = [name for name, value in given.items() if value is not None]
    if no_model or (no_model is None and before.get("no_model") in (True, "true") and not named):
        if named:
            raise ConfigError("--no-model asks no teacher", hint="leave out --no-model, or what names the teacher")
        return {"no_model": True}
    if given["teacher"] == "gold":
        raise ConfigError(
            "--teacher gold answers questions that are there, and makes none", hint="give a model, or --no-model"
        )
    return teacher_values(console, before, **given)


def choose_documents(console: Console, given: str | None) -> tuple[str, str | None]:
    """An index folder, the one given or remembered; or that of the BM25 index of a corpus, and the corpus.

    Raises ConfigError for a server, which does not list its passages, and InputError where there is no such corpus.
    """
    from dgpo_cli.retrieval.corpus.reader import corpus_name, require_corpus
    from dgpo_cli.retrieval.index.manifest import FILE
    from dgpo_cli.retrieval.registry import is_server

    if given is None or (Path(given) / FILE).is_file():
        given = choose(console, "index", given, hint="name the documents: `dgpo make-questions FOLDER`")
    if is_server(given):
        raise ConfigError(
            f"{given} is a server, which does not tell its passages", hint="give a corpus or an index folder"
        )
    if (Path(given) / FILE).is_file():
        return absolute(given), None
    require_corpus(given)
    return str((Path("indexes") / corpus_name(given)).resolve()), given


def index_documents(console: Console, corpus: str, target: Path) -> None:
    """Build the index of a corpus where it is not there. Raises ConfigError where another one is."""
    from dgpo_cli.retrieval.index.build import build_index

    with console.progress("indexing", "passage") as progress:
        try:
            manifest, reused = build_index(corpus, target, progress=progress)
        except ConfigError as error:
            again = f"`{shell.command('dgpo', 'index', corpus, '--out')} DIR`, then `dgpo make-questions DIR`"
            raise ConfigError(error.message, hint=again) from error
    place = portable(str(target))
    console.info(f"index: {place}, {counted(manifest.passages, 'passage')}{' (was there)' if reused else ''}")
    if manifest.skipped:
        console.warn(f"{manifest.skipped:,} not usable, the first: {manifest.problems[0]}")
