"""`dgpo index`: corpus file to search index; each of its subcommands has a file next to this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.commands.common.help import Group
from dgpo_cli.commands.common.milvus import add_address
from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag
from dgpo_cli.commands.index.check import check
from dgpo_cli.commands.index.parts import build_processes, build_shard, launched, merge
from dgpo_cli.commands.index.result import show_build
from dgpo_cli.commands.index.settings import index_settings
from dgpo_cli.commands.index.tune import tune
from dgpo_cli.commands.index.update import update_folder
from dgpo_cli.commands.index.wiki18 import wiki18
from dgpo_cli.commands.index.withhold import withhold
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

_HELP = ("-h", "--help")


class _BuildByDefault(Group):
    """`dgpo index wiki.jsonl` is `dgpo index build wiki.jsonl`. A corpus named like a command is reached as ./check."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in _HELP:
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BuildByDefault,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    subcommand_metavar="CORPUS | wiki-18 | merge | check | tune | withhold [OPTIONS]",
    context_settings={"help_option_names": list(_HELP)},
)


app.command("wiki-18")(wiki18)
app.command("merge")(merge)
app.command("check")(check)
app.command("tune")(tune)
app.command("withhold")(withhold)


@app.callback()
def index(context: typer.Context) -> None:
    """Build a search index from a corpus, in one piece or in parts, or check one.

    Examples: `dgpo index wiki.jsonl` · `dgpo index merge part-*` · `dgpo index check --questions nq.jsonl -k 2,5` · all
    options of the first form: `dgpo index build --help`
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
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Bring the index of a folder up to date: read and encode only what is new in it."
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Encode part I of N only, for `dgpo index merge`; as many machines.", show_default=False
        ),
    ] = None,
    from_faiss: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the vectors of this faiss index over, after a check; --encoder made them.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--set",
            metavar="NAME=VALUE",
            help="Another setting of the retriever, e.g. -o stemmer=english. An unknown one lists all.",
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Build a search index from a corpus; the word `build` may be left out.

    A corpus has one passage a line: `{"id", "contents"}` with the title on the first line of contents, or
    `{"id", "title", "text"}`. Text, Markdown, HTML, PDF, Word, PowerPoint, Excel, EPUB, CSV and JSON files of a
    folder are cut into passages of about 100 words.
    An index of the same corpus with the same settings is used as it is. `--update` keeps the retriever and the settings
    of the index that is there.

    Examples: `dgpo index wiki.jsonl` · `dgpo index ~/notes --update` · `dgpo index hf:BeIR/scifact:corpus:corpus` ·
    `dgpo index wiki.jsonl.zst --retriever dense --encoder intfloat/e5-base-v2` · `dgpo index wiki.jsonl -o k1=0.9`
    """
    from dgpo_cli.retrieval.corpus.reader import corpus_name
    from dgpo_cli.retrieval.index.build import build_index

    rank, processes = launched(device)
    console = Console(json_output=json, quiet=quiet or rank > 0)
    if update:
        given = retriever != "bm25" or bool(encoder or uri or shard or from_faiss or overwrite or options)
        update_folder(console, corpus, out, given=given or processes > 1, strict=strict)
        return
    settings = index_settings(retriever, encoder, options)
    target = out or Path("indexes") / corpus_name(corpus)
    add_address(settings, retriever, uri, target)
    if from_faiss is not None and (shard is not None or processes > 1):
        raise ConfigError("--from-faiss leaves nothing to divide", hint="give it to one process, without --shard")
    if shard is not None:
        build_shard(console, corpus, out, target, shard, processes, retriever, settings, strict, overwrite)
        return
    if processes > 1:
        build_processes(console, corpus, target, rank, processes, retriever, settings, strict, overwrite)
        return
    with console.progress("indexing", "passage") as progress:
        built = build_index(
            corpus,
            target,
            retriever=retriever,
            settings=settings,
            strict=strict,
            overwrite=overwrite,
            from_faiss=from_faiss,
            progress=progress,
        )
    show_build(console, target, *built)
