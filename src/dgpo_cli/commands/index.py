"""`dgpo index`: corpus file to search index; `dgpo index check`: is it whole, and how good is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.commands.shared import JsonFlag, QuietFlag, SetOption, absolute, choose_index
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError


def index(
    corpus: Annotated[str, typer.Argument(help="Corpus file (.jsonl or .jsonl.gz), or the word `check`.")],
    out: Annotated[Path | None, typer.Option(help="Index folder; indexes/<corpus name> by default.")] = None,
    retriever: Annotated[str, typer.Option(help="bm25, rank-bm25 (small corpora) or dense.")] = "bm25",
    encoder: Annotated[str | None, typer.Option(help="Encoder of a dense index: hub id or folder.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad line instead of skipping it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of another corpus.")] = False,
    index: Annotated[str | None, typer.Option("--index", help="check: index folder; the current one by default.")] = None,
    questions: Annotated[Path | None, typer.Option(help="check: questions with gold passages, for recall.")] = None,
    k: Annotated[str, typer.Option("-k", help="check: depths, e.g. 2,5.")] = "2,5",
    set_: SetOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Build a search index from a corpus, or check one.

    A corpus has one passage a line: {"id", "contents"} with the title on the first line of contents, or
    {"id", "title", "text"}.

    Examples: `dgpo index wiki.jsonl` · `dgpo index check --questions nq.jsonl -k 2,5`
    """
    console = Console(json_output=json, quiet=quiet)
    if corpus == "check":
        _check(console, choose_index(console, index), questions, _depths(k))
        return
    settings = _settings(retriever, encoder, set_)
    _build(console, Path(corpus), out, retriever, settings, strict, overwrite)


def _settings(retriever: str, encoder: str | None, options: list[str] | None) -> dict[str, Any]:
    """Settings given on the command line, numbers parsed by the type of the retriever's default."""
    from dgpo_cli.core.config import parse_options
    from dgpo_cli.retrieval.build import resolve_settings

    given: dict[str, Any] = parse_options(options or ())
    if encoder is not None:
        given["encoder"] = encoder
    defaults = resolve_settings(retriever, {})
    resolve_settings(retriever, given)
    try:
        return {name: type(defaults[name])(value) for name, value in given.items()}
    except ValueError as error:
        raise ConfigError(f"-o: {error}", hint="give numbers where the default is a number") from error


def _build(
    console: Console, corpus: Path, out: Path | None, retriever: str, settings: dict[str, Any], strict: bool, overwrite: bool
) -> None:
    from dgpo_cli.core.workspace import Workspace
    from dgpo_cli.retrieval.build import build_index

    target = out or Path("indexes") / corpus.name.removesuffix(".gz").removesuffix(".jsonl")
    with console.progress("reading passages", "passage") as progress:
        manifest, reused = build_index(
            corpus, target, retriever=retriever, settings=settings, strict=strict, overwrite=overwrite, progress=progress
        )
    Workspace().remember(by="dgpo index", index=absolute(str(target)))
    for problem in manifest.problems:
        console.warn(f"skipped: {problem}")
    if manifest.skipped > len(manifest.problems):
        console.warn(f"... and {manifest.skipped - len(manifest.problems)} more")
    verb = "is up to date:" if reused else f"built in {manifest.seconds:.1f} s:"
    console.print(
        f"{target} {verb} {manifest.passages:,} passages, {manifest.bytes / 1e6:.1f} MB, {manifest.skipped} lines skipped"
    )
    console.result(
        {
            "passages": manifest.passages,
            "seconds": round(manifest.seconds, 3),
            "bytes": manifest.bytes,
            "skipped": manifest.skipped,
            "index": str(target),
            "digest": manifest.digest,
            "reused": reused,
        }
    )


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"-k {text!r} is not a list of numbers", hint="write it like -k 2,5") from error
    if min(depths) < 1:
        raise ConfigError(f"-k {text!r} holds a depth below 1", hint="write it like -k 2,5")
    return depths


def _check(console: Console, location: str, questions: Path | None, depths: list[int]) -> None:
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.check import check_integrity, measure
    from dgpo_cli.retrieval.open import open_index

    opened = open_index(location)
    passages = check_integrity(opened)
    assert opened.manifest is not None
    console.print(f"{location}: {passages:,} passages, all readable; {opened.manifest.retriever}, {opened.manifest.settings}")
    result: dict[str, Any] = {"index": location, "passages": passages, "digest": opened.digest}
    if questions is not None:
        quality = measure(opened, read_questions(questions), depths)
        rows = [[k, quality.recall.get(k), quality.answer_hit[k]] for k in depths]
        console.table(
            f"{quality.questions} questions, {quality.with_gold} with gold passages", ["k", "recall", "answer in passages"], rows
        )
        result |= {
            "questions": quality.questions,
            "with_gold": quality.with_gold,
            "recall": {str(k): value for k, value in quality.recall.items()},
            "answer_hit": {str(k): value for k, value in quality.answer_hit.items()},
        }
    console.result(result)
