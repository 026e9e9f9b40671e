"""`dgpo index`: corpus file to search index; `dgpo index check` is in index_check.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dgpo_cli.commands.index_check import check
from dgpo_cli.commands.milvus import add_address
from dgpo_cli.commands.shared import JsonFlag, QuietFlag, absolute
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.retrieval.manifest import Manifest

_HELP = ("-h", "--help")
_SHOWN = 10  # lines or files


class _BuildByDefault(TyperGroup):
    """`dgpo index wiki.jsonl` is `dgpo index build wiki.jsonl`. A corpus named like a command is reached as ./check."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in _HELP:
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BuildByDefault,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    subcommand_metavar="CORPUS | check [OPTIONS]",
    context_settings={"help_option_names": list(_HELP)},
)


app.command("check")(check)


@app.callback()
def index(context: typer.Context) -> None:
    """Build a search index from a corpus, or check one.

    Examples: `dgpo index wiki.jsonl` · `dgpo index check --questions nq.jsonl -k 2,5` · all options of the first form:
    `dgpo index build --help`
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("build")
def build(
    corpus: Annotated[
        str,
        typer.Argument(help="JSONL (.gz, .zst), .parquet, a folder of texts, or hf:REPO:SPLIT.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Index folder; indexes/NAME for a corpus NAME.jsonl by default.", show_default=False),
    ] = None,
    retriever: Annotated[str, typer.Option(help="bm25, dense, hybrid, rank-bm25 (small corpora), or milvus.")] = "bm25",
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder of a dense, hybrid or milvus index: hub id or folder.", show_default=False),
    ] = None,
    uri: Annotated[
        str | None, typer.Option(help="Where Milvus is: FILE.db, or http://host:19530.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad line or file instead of skipping it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is there.")] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--set", help="Another setting of the retriever, e.g. -o stemmer=english. An unknown one lists all."
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Build a search index from a corpus; the word `build` may be left out.

    A corpus has one passage a line: `{"id", "contents"}` with the title on the first line of contents, or
    `{"id", "title", "text"}`. The .txt, .md, .html and .pdf files of a folder are cut into passages of about 100 words.
    An index of the same corpus with the same settings is used as it is.

    Examples: `dgpo index wiki.jsonl` · `dgpo index ~/notes` · `dgpo index hf:BeIR/scifact:corpus:corpus` ·
    `dgpo index wiki.jsonl.zst --retriever dense --encoder intfloat/e5-base-v2` · `dgpo index wiki.jsonl -o k1=0.9`
    """
    from dgpo_cli.core.config import parse_options
    from dgpo_cli.core.workspace import Workspace
    from dgpo_cli.retrieval.build import build_index
    from dgpo_cli.retrieval.corpus import corpus_name

    console = Console(json_output=json, quiet=quiet)
    settings = parse_options(options or ())
    if encoder is not None:
        if retriever not in ("dense", "hybrid", "milvus"):
            raise ConfigError(f"--encoder has no effect on {retriever}", hint="give --retriever dense, or no --encoder")
        of_dense = settings if retriever == "dense" else settings.setdefault("dense", {})
        if not isinstance(of_dense, dict):
            raise ConfigError(f"-o dense={of_dense} is no setting", hint="write it like -o dense.max_length=128")
        of_dense["encoder"] = absolute(encoder)
    target = out or Path("indexes") / corpus_name(corpus)
    add_address(settings, retriever, uri, target)
    with console.progress("indexing", "passage") as progress:
        manifest, reused = build_index(
            corpus,
            target,
            retriever=retriever,
            settings=settings,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    Workspace().remember(by="dgpo index", index=absolute(str(target)))
    _show_build(console, target, manifest, reused)


def _show_build(console: Console, target: Path, manifest: Manifest, reused: bool) -> None:
    for problem in manifest.problems[:_SHOWN]:
        console.warn(f"skipped {problem}")
    if manifest.skipped > len(manifest.problems):
        console.warn(f"... and {manifest.skipped - len(manifest.problems):,} more")
    dense = manifest.state.get("dense", manifest.state)
    if cut := dense.get("truncated_passages"):
        console.warn(f"{cut:,} passages are longer than max_length tokens and are found by their beginning only")
    if measured := dense.get("measured"):
        console.info(
            f"{dense['factory']} finds {measured['recall']:.1%} of the exact best 10 ({measured['sample']} queries)"
        )
    what = "is up to date and used as it is" if reused else f"built in {manifest.seconds:.1f} s"
    size = f"{manifest.passages:,} passages, {manifest.bytes / 1e6:.1f} MB"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.skipped_by_kind.items())
    console.print(f"{target} {what}: {size}, {manifest.skipped:,} skipped{f': {kinds}' if kinds else ''}")
    console.result(
        {
            "passages": manifest.passages,
            "seconds": round(manifest.seconds, 3),
            "bytes": manifest.bytes,
            "skipped": manifest.skipped,
            "skipped_by_kind": manifest.skipped_by_kind,
            "problems": list(manifest.problems),
            "index": str(target),
            "retriever": manifest.retriever,
            "settings": manifest.settings,
            "state": manifest.state,
            "digest": manifest.digest,
            "reused": reused,
        }
    )
