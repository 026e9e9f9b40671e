"""An index that several machines or processes encode: `dgpo index CORPUS --shard I/N` and `dgpo index merge`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag
from dgpo_cli.commands.index.result import show_build
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError


def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders of all parts, in any order.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Index folder.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is there.")] = False,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Merge the parts of an index into what a build in one piece would have made.

    The encoder must be there too, for the recall of a compressed index is measured. The parts are left as they are.

    Examples: `dgpo index wiki.jsonl --retriever dense --shard 1/2 --out part-1` on one machine, `--shard 2/2 --out
    part-2` on another, then `dgpo index merge part-1 part-2 --out indexes/wiki`
    """
    from dgpo_cli.retrieval.device import use_device
    from dgpo_cli.retrieval.index.parts import merge_parts

    console = Console(json_output=json, quiet=quiet)
    use_device(device or "auto")
    with console.progress("merging", "passage") as progress:
        built = merge_parts(parts, out, overwrite=overwrite, progress=progress)
    show_build(console, out, *built)


def build_shard(
    console: Console,
    corpus: str,
    out: Path | None,
    target: Path,
    shard: str,
    processes: int,
    retriever: str,
    settings: dict[str, Any],
    strict: bool,
    overwrite: bool,
) -> None:
    """Build one part, into `out` or next to `target`."""
    from dgpo_cli.retrieval.index.part import parse_part
    from dgpo_cli.retrieval.index.parts import build_part

    if processes > 1:
        raise ConfigError(
            f"--shard {shard}, and {processes} processes were launched, which divide the corpus by themselves",
            hint="leave --shard out, or start one process",
        )
    number, of = parse_part(shard)
    place = out or target.with_name(f"{target.name}.part-{number}-of-{of}")
    with console.progress("encoding", "passage") as progress:
        part, reused = build_part(
            corpus,
            place,
            number,
            of,
            retriever=retriever,
            settings=settings,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    what = "is up to date and used as it is" if reused else f"holds {part.rows:,} of {part.passages:,} passages"
    console.print(f"{place}: part {number} of {of} {what}; `dgpo index merge` makes an index of all parts")
    console.result(
        {"part": str(place), "number": number, "of": of, "rows": part.rows, "passages": part.passages, "reused": reused}
    )


def build_processes(
    console: Console,
    corpus: str,
    target: Path,
    rank: int,
    processes: int,
    retriever: str,
    settings: dict[str, Any],
    strict: bool,
    overwrite: bool,
) -> None:
    """One of several processes that build an index together; the first one tells of it."""
    from dgpo_cli.retrieval.index.parts import build_together

    with console.progress("indexing", "passage") as progress:
        built = build_together(
            corpus,
            target,
            rank,
            processes,
            retriever=retriever,
            settings=settings,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    if built is not None:
        show_build(console, target, *built)


def launched(device: str | None) -> tuple[int, int]:
    """(which, of how many) of the processes of `accelerate launch` or torchrun this is; each takes a GPU of its own."""
    from dgpo_cli.retrieval.device import use_device

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = os.environ.get("LOCAL_RANK")
    use_device(device or "auto", local_rank=int(local) if processes > 1 and local else None)
    return rank, processes
