"""`dgpo index check`: is an index whole, and how good is it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag, choose_index
from dgpo_cli.commands.common.search_options import RerankOption, rerank_config
from dgpo_cli.commands.index.result import tokenizer_setting
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted, percent
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.core.types import Question
    from dgpo_cli.retrieval.index.check import RetrievalQuality
    from dgpo_cli.retrieval.open import OpenIndex


def check(
    index: Annotated[
        str | None, typer.Option("--index", help="Index folder; the current one by default.", show_default=False)
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions, or a BEIR folder; with gold passages, also for recall.", show_default=False),
    ] = None,
    k: Annotated[str, typer.Option("-k", help="Depths at which to measure.")] = "2,5",
    options: RerankOption = None,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check that an index is whole, and how often it finds what is in it.

    Every file is compared with its hash, every passage is read, and a sample of 200 is searched for by the first twelve
    words of its text: own words is the share that comes back in the first k. It is near 1 unless many passages begin
    alike. With questions it is also measured how often the index finds what they need.

    Recall at k is the share of a question's gold passages in the first k, the mean over questions; answer in passages
    is the share of questions with an accepted answer somewhere in the first k. With -o rerank.model=... both are shown
    for the index alone and reranked.

    Example: `dgpo index check --index indexes/wiki --questions hotpotqa.jsonl.gz -k 2,5`
    """
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.index.check import check_integrity
    from dgpo_cli.retrieval.open import open_index, with_reranker

    console = Console(json_output=json, quiet=quiet)
    depths = _depths(k)
    rerank = rerank_config(options)
    if rerank.model is not None and questions is None:
        raise ConfigError("-o rerank.model has no effect without questions", hint="give --questions FILE too")
    asked = None if questions is None else read_questions(questions, answers=False)
    opened = open_index(choose_index(console, index), device=device or "auto")
    reranked = with_reranker(opened, rerank)
    with console.progress("reading passages", "passage") as progress:
        passages = check_integrity(opened, progress)
    assert opened.manifest is not None, "check_integrity refuses a server"
    settings = ", ".join(f"{name} {value}" for name, value in opened.manifest.settings.items())
    console.print(f"{opened.location}: {counted(passages, 'passage')}, whole; {opened.manifest.retriever} ({settings})")
    result: dict[str, Any] = {
        "index": opened.location,
        "passages": passages,
        "retriever": opened.manifest.retriever,
        "settings": opened.manifest.settings,
        "digest": opened.digest,
    }
    result |= _own_words(console, opened, depths)
    if asked is not None:
        qualities = [_measured(console, opened, asked, depths)]
        if rerank.model is not None:
            qualities.append(_measured(console, reranked, asked, depths))
        result |= _show(console, qualities, depths, rerank.model)
    console.result(result)


def _own_words(console: Console, opened: OpenIndex, depths: list[int]) -> dict[str, dict[int, float] | float]:
    """How often a passage is found by its own words, and how much of the text is in scripts that are not cut."""
    from dgpo_cli.retrieval.index.check import self_recall, uncut_share
    from dgpo_cli.retrieval.lexical.words import AUTO_SHARE

    assert opened.manifest is not None, "check_integrity refuses a server"
    with console.progress("searching", "passage") as progress:
        sample, shares = self_recall(opened, depths, progress)
    found = ", ".join(f"{percent(share)} in the first {depth}" for depth, share in shares.items())
    console.print(f"found by their own words: {found} (of {sample:,} passages)")
    uncut = uncut_share(opened)
    if uncut >= AUTO_SHARE:
        console.warn(
            f"{percent(uncut)} of the characters are in scripts that the tokenizer of this index cannot cut, "
            "such as Chinese, Thai or Hindi; build it again with --overwrite "
            f"-o {tokenizer_setting(opened.manifest)}=unicode"
        )
    return {"own_words": shares, "uncut_share": uncut}


def _measured(console: Console, opened: OpenIndex, asked: Sequence[Question], depths: list[int]) -> RetrievalQuality:
    from dgpo_cli.retrieval.index.check import measure

    with console.progress("reranking" if opened.reranked else "searching", "question") as progress:
        return measure(opened, asked, depths, progress)


def _show(
    console: Console, qualities: Sequence[RetrievalQuality], depths: list[int], reranker: str | None
) -> dict[str, Any]:
    """A row for each depth of the index alone and, where there is a second quality, of it reranked."""
    alone = qualities[0]
    console.table(
        f"{counted(alone.questions, 'question')}, {alone.with_gold:,} with gold passages",
        ["k", "recall", "answer in passages", *(["recall, reranked", "answer, reranked"] if qualities[1:] else [])],
        [
            [depth, *(percent(s.get(depth)) for each in qualities for s in (each.recall, each.answer_hit))]
            for depth in depths
        ],
    )
    shown = {"questions": alone.questions, "with_gold": alone.with_gold} | _shares(alone)
    return shown | ({"reranked": {"model": reranker} | _shares(qualities[1])} if qualities[1:] else {})


def _shares(quality: RetrievalQuality) -> dict[str, dict[int, float]]:
    return {"recall": quality.recall, "answer_hit": quality.answer_hit}


def _depths(text: str) -> list[int]:
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError(f"-k {text!r} is not a list of numbers", hint="write it like -k 2,5") from error
    if depths[0] < 1:
        raise ConfigError(f"-k {text!r} holds a depth below 1", hint="write it like -k 2,5")
    return depths
