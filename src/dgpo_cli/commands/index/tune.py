"""`dgpo index tune`: BM25's settings chosen by questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag, choose_index, within_64_bits
from dgpo_cli.console import Console
from dgpo_cli.core.figures import percent, points, points_range
from dgpo_cli.errors import ConfigError

_SHOWN = 5


def tune(
    questions: Annotated[Path, typer.Option(help="Questions, best with gold passages.", show_default=False)],
    index: Annotated[
        str | None, typer.Option("--index", help="A bm25 index; the current one by default.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Passages that count as found.")] = 5,
    seed: Annotated[int, typer.Option(callback=within_64_bits, help="Which half of the questions chooses.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Choose BM25's stemmer, stop words, k1 and b by questions, and measure the gain on questions that did not choose.

    The index is built again for each of 24 settings, in a temporary folder; the index itself stays as it is. Measured
    is recall at k, or where no question names gold passages, the share of questions with an answer in the first k.

    Example: `dgpo index tune --index indexes/wiki --questions hotpotqa.jsonl.gz`
    """
    from dataclasses import asdict

    from dgpo_cli.evaluation.tune import tune as tuned
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.open import open_index

    console = Console(json_output=json, quiet=quiet)
    if k < 1:
        raise ConfigError(f"-k {k} leaves no passage", hint="give -k 1 or more")
    asked = read_questions(questions, answers=False)
    opened = open_index(choose_index(console, index))
    with console.progress("trying settings", "index") as progress:
        found = tuned(opened, asked, k, seed=seed, progress=progress)
    console.table(
        f"{found.measure} at {k}, {found.chosen_on:,} questions that choose",
        ["stemmer", "stop words", "k1", "b", found.measure],
        [[s["stemmer"], s["stopwords"], s["k1"], s["b"], percent(share)] for s, share in found.tried[:_SHOWN]],
    )
    gain = found.gain
    console.print(
        f"on the other {found.tested_on:,} questions: {percent(found.before)} as it is, {percent(found.after)} "
        f"with the best; {points(gain.difference)} ({points_range(gain.interval.low, gain.interval.high)})"
    )
    result: dict[str, Any] = asdict(found) | {"index": opened.location, "k": k}
    if not found.settings or gain.interval.low <= 0:
        console.print("no gain that is sure: the index can stay as it is")
    else:
        options = " ".join(f"-o {name}={value}" for name, value in found.settings.items())
        console.next(f"dgpo index CORPUS {options}")
    console.result(result)
