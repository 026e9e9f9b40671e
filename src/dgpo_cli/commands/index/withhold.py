"""`dgpo index withhold`: unanswerable questions, made by leaving passages out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag, choose_index, within_64_bits
from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.errors import ConfigError


def withhold(
    questions: Annotated[Path, typer.Option(help="Questions that name gold passages.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for corpus, index and questions.", show_default=False)],
    index: Annotated[
        str | None, typer.Option("--index", help="An index folder; the current one by default.", show_default=False)
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the questions that are to be unanswerable.")] = 0.2,
    seed: Annotated[int, typer.Option(callback=within_64_bits, help="Which questions these are.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make some questions unanswerable: their passages are left out of a copy of the corpus.

    Such a question's accepted answer is "not in the documents". Training and evaluating with the made index and
    questions shows whether an agent says so; `-o reward.abstention` pays for it.

    Example: `dgpo index withhold --index indexes/notes --questions questions.jsonl --out hard`
    """
    from dgpo_cli.evaluation.withhold import withhold as withheld
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.open import open_index

    console = Console(json_output=json, quiet=quiet)
    if not 0 < share < 1:
        raise ConfigError(f"--share {share} leaves no question of one kind", hint="give a share between 0 and 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already", hint="give another --out, or move it away")
    asked = read_questions(questions)
    opened = open_index(choose_index(console, index))
    with console.progress("indexing", "passage") as progress:
        made = withheld(opened, asked, share, out, seed=seed, progress=progress)
    console.print(
        f"{out}: {made.unanswerable:,} unanswerable and {made.answerable:,} answerable questions over a corpus without "
        f"{made.passages:,} passages; left out: {made.lost:,} that needed one of these, {made.still_answered:,} that "
        "the rest may answer"
    )
    console.next(shell.command("dgpo", "eval", "--bench", "made", "--bench-dir", out, "--index", out / "index"))
    console.result(asdict(made) | {"index": str(out / "index"), "questions": str(out / "made.jsonl")})
