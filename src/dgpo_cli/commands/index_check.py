"""`dgpo index check`: is an index whole, and how good is it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.shared import JsonFlag, QuietFlag, choose_index
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.core.types import Question
    from dgpo_cli.retrieval.open import OpenIndex


def check(
    index: Annotated[
        str | None, typer.Option("--index", help="Index folder; the current one by default.", show_default=False)
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions (FlashRAG JSONL); with gold passages, also for recall.", show_default=False),
    ] = None,
    k: Annotated[str, typer.Option("-k", help="Depths at which to measure.")] = "2,5",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check that an index is whole, and how often it finds what is in it.

    Every file is compared with its hash, every passage is read, and a sample of 200 is searched for by the first twelve
    words of its text: own words is the share that comes back in the first k. It is near 1 unless many passages begin
    alike. With questions it is also measured how often the index finds what they need.

    Recall at k is the share of a question's gold passages in the first k, the mean over questions; answer in passages
    is the share of questions with an accepted answer somewhere in the first k.

    Example: `dgpo index check --index indexes/wiki --questions hotpotqa.jsonl.gz -k 2,5`
    """
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.check import check_integrity, self_recall
    from dgpo_cli.retrieval.open import open_index

    console = Console(json_output=json, quiet=quiet)
    depths = _depths(k)
    asked = None if questions is None else read_questions(questions)
    opened = open_index(choose_index(console, index))
    with console.progress("reading passages", "passage") as progress:
        passages = check_integrity(opened, progress)
    assert opened.manifest is not None, "check_integrity refuses a server"
    settings = ", ".join(f"{name} {value}" for name, value in opened.manifest.settings.items())
    console.print(f"{opened.location}: {passages:,} passages, whole; {opened.manifest.retriever} ({settings})")
    result: dict[str, Any] = {
        "index": opened.location,
        "passages": passages,
        "retriever": opened.manifest.retriever,
        "settings": opened.manifest.settings,
        "digest": opened.digest,
    }
    with console.progress("searching", "passage") as progress:
        sample, shares = self_recall(opened, depths, progress)
    found = ", ".join(f"{share:.1%} in the first {depth}" for depth, share in shares.items())
    console.print(f"found by their own words: {found} (of {sample:,} passages)")
    result["own_words"] = {str(depth): share for depth, share in shares.items()}
    if asked is not None:
        result |= _measured(console, opened, asked, depths)
    console.result(result)


def _measured(console: Console, opened: OpenIndex, asked: Sequence[Question], depths: list[int]) -> dict[str, Any]:
    from dgpo_cli.retrieval.check import measure

    with console.progress("searching", "question") as progress:
        quality = measure(opened, asked, depths, progress)
    console.table(
        f"{quality.questions:,} questions, {quality.with_gold:,} with gold passages",
        ["k", "recall", "answer in passages"],
        [[depth, quality.recall.get(depth), quality.answer_hit[depth]] for depth in depths],
    )
    return {
        "questions": quality.questions,
        "with_gold": quality.with_gold,
        "recall": {str(depth): value for depth, value in quality.recall.items()},
        "answer_hit": {str(depth): value for depth, value in quality.answer_hit.items()},
    }


def _depths(text: str) -> list[int]:
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError(f"-k {text!r} is not a list of numbers", hint="write it like -k 2,5") from error
    if depths[0] < 1:
        raise ConfigError(f"-k {text!r} holds a depth below 1", hint="write it like -k 2,5")
    return depths
