"""`dgpo index wiki-18`: the published corpus and E5 index of Search-R1, fetched and made into an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag
from dgpo_cli.commands.index.result import show_build
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError, InputError

if TYPE_CHECKING:
    from dgpo_cli.retrieval.corpus.wiki18 import HubFile


def wiki18(
    out: Annotated[Path, typer.Option(help="Index folder.")] = Path("indexes/wiki-18"),
    retriever: Annotated[str, typer.Option(help="dense (the paper's), hybrid, or bm25 (the corpus only).")] = "dense",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the download.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is there.")] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the retriever, e.g. -o factory=Flat for exact search.",
        ),
    ] = None,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fetch Wikipedia of 2018 and its E5 vectors as Search-R1 published them, and make an index of them.

    The sizes and the free disk are shown first. An interrupted download goes on with the same command. By its size the
    index is IVF with product quantization, whose recall against exact search is measured; `-o factory=Flat` keeps the
    vectors in half precision, for a GPU.

    Examples: `dgpo index wiki-18` · `dgpo index wiki-18 --yes -o factory=Flat` · `dgpo index wiki-18 --retriever bm25`
    """
    from dgpo_cli.core.config import parse_options
    from dgpo_cli.core.locks import Lock, lock_beside
    from dgpo_cli.retrieval.corpus import wiki18 as published
    from dgpo_cli.retrieval.device import use_device
    from dgpo_cli.retrieval.index.build import alone, build_index, configured, discard_unfinished, existing

    console = Console(json_output=json, quiet=quiet)
    use_device(device or "auto")
    vectors = retriever in ("dense", "hybrid")
    settings = parse_options(options or ())
    if vectors:
        _encoded_by(published.ENCODER, settings, retriever)
    _, config = configured(retriever, settings)  # refuses what is impossible before anything is fetched
    with Lock(lock_beside(Path(f"{out.resolve()}.fetch")), out, hint="wait for it, or give another --out"):
        with alone(out):
            discard_unfinished(out)  # it would count against the free disk
            here = published.cached(*published.CORPUS)
            found = None
            if here is not None and here.cached is not None:
                location = here.cached
                found = existing(out, retriever, asdict(config), location, overwrite=overwrite)
        if found is not None:
            published.discard_flat(out)
            show_build(console, out, found, reused=True)
            return
        files = published.listed(vectors)
        _ask(console, files, out, yes)
        corpus = published.fetch_corpus(files[0])
        flat = published.flat_file(out, files[1:]) if vectors else None
        if flat is not None:
            published.fetch_flat(files[1:], flat)
        with console.progress("indexing", "passage") as progress:
            built = build_index(
                corpus,
                out,
                retriever=retriever,
                settings=settings,
                overwrite=overwrite,
                from_faiss=flat,
                known_as=published.NAME,
                progress=progress,
            )
        published.discard_flat(out)
    show_build(console, out, *built)


def _encoded_by(encoder: str, settings: dict[str, Any], retriever: str) -> None:
    of_dense = settings if retriever == "dense" else settings.setdefault("dense", {})
    if not isinstance(of_dense, dict) or of_dense.setdefault("encoder", encoder) != encoder:
        raise ConfigError(f"the published vectors are by {encoder}", hint="leave the encoder out")


def _ask(console: Console, files: list[HubFile], out: Path, yes: bool) -> None:
    """Show what will be fetched and what it needs. Raises InputError where it cannot fit, typer.Abort for a no."""
    from dgpo_cli.retrieval.corpus import wiki18 as published

    wanted, cache = published.needs(files, out), published.cache_folder()
    places = {cache: wanted.to_cache, out: wanted.beside}
    if published.same_disk(cache, out):
        places = {out: wanted.to_cache + wanted.beside}
    rows = [[f"{f.repo}/{f.name}", f.bytes / 1e9, "is here" if f.cached else ""] for f in files]
    console.table("", ["file", "GB", ""], rows)
    for place, needed in places.items():
        free = published.free_bytes(place)
        console.info(f"{place}: {needed / 1e9:,.1f} GB are needed at most, {free / 1e9:,.1f} GB are free")
        if needed > free:
            raise InputError(
                f"{needed / 1e9:,.1f} GB are needed for {place}, {free / 1e9:,.1f} GB are free",
                hint="free some space, give --out on another disk, or move the hub's cache with HF_HOME",
            )
    if yes or not wanted.download:
        return
    if not console.interactive:
        raise ConfigError(f"{wanted.download / 1e9:,.1f} GB would be fetched", hint="give --yes to fetch them")
    if console.ask(f"fetch {wanted.download / 1e9:,.1f} GB? [y/N] ").strip().lower() not in ("y", "yes"):
        raise typer.Abort
