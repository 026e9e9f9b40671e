"""`dgpo index FOLDER --update`: an index brought to what its folder holds."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.commands.index.result import show_build
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError


def update_folder(console: Console, corpus: str, out: Path | None, *, given: bool, strict: bool) -> None:
    """The index at `out`, or at the place of `corpus`. `given`: flags were, that say how to build an index."""
    from dgpo_cli.retrieval.corpus.reader import corpus_name
    from dgpo_cli.retrieval.index.update import update_index

    if given:
        raise ConfigError(
            "--update keeps the retriever and the settings of the index that is there",
            hint="leave the other flags out, or give --overwrite and no --update to build it again",
        )
    target = out or Path("indexes") / corpus_name(corpus)
    with console.progress("indexing", "passage") as progress:
        manifest, update = update_index(Path(corpus), target, strict=strict, progress=progress)
    if update is not None:
        encoded = "" if update.passages_encoded is None else f", {update.passages_encoded:,} passages were encoded"
        console.info(f"{update.files_read:,} of {update.files:,} files were read{encoded}")
    show_build(console, target, manifest, reused=update is None)
