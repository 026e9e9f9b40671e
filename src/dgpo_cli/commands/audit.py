"""`dgpo audit`: can these questions be answered from this index at all?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag, choose_index, run_or_name
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted, percent
from dgpo_cli.errors import ConfigError, RetrievalError

if TYPE_CHECKING:
    from dgpo_cli.core.types import Question
    from dgpo_cli.evaluation.audit import Audit

_SHOWN = 5  # questions without an answer
_READ = 3  # passages of a search, as in the paper


def audit(
    questions: Annotated[
        Path | None, typer.Argument(help="Question file; by default the questions of --run.", show_default=False)
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Index folder; the current one by default.", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Passages that an agent reads per search; as in --run, else 3.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Passages that are looked at per search.")] = 100,
    run: Annotated[
        str | None, typer.Option(help="An evaluation: which of its wrong answers had a chance?", show_default=False)
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the questions that can be answered to this file.", show_default=False)
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find the questions that nobody can answer from this corpus, and the ceiling that retrieval sets.

    Every question is searched for as it stands and by the titles of its gold passages; then the whole corpus is looked
    through for the answers that were not found. An answer counts as found where it is a substring of a passage, both
    normalized; a question that is answered by yes or no, or that its file calls unanswerable, needs no passage.

    The ceiling is the highest exact match of an agent that searches by these queries. Queries of its own can find more.

    Examples: `dgpo audit hotpotqa.jsonl.gz --index indexes/wiki` · `dgpo audit --run eval-0001 --write good.jsonl`
    """
    from dataclasses import asdict

    from dgpo_cli.core.folders import sole_writer
    from dgpo_cli.core.records import write_jsonl_atomic
    from dgpo_cli.core.types import question_to_json
    from dgpo_cli.evaluation.audit import chances, read_through, search, suggestions, summary
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.viewing.run_records import answers

    console = Console(json_output=json, quiet=quiet)
    if not 1 <= (1 if top_k is None else top_k) <= depth:
        raise ConfigError(
            f"-k {_READ if top_k is None else top_k} is not between 1 and --depth {depth}",
            hint="write it like -k 3 --depth 100",
        )
    if write is not None:
        _check_place(write, questions)
    episodes, read = ([], None) if run is None else answers(Path(run_or_name(run)))
    if top_k is None:
        top_k = min(depth, read or _READ)
        if read is not None:
            console.info(f"top_k: {top_k} (as {run} read)")
    asked = _questions(questions, [episode.question for episode in episodes])
    opened = open_index(choose_index(console, index))
    if opened.passages is None:
        raise RetrievalError(
            f"{opened.location} is a server; only an index folder can be looked through", hint="give --index DIR"
        )
    with console.progress("searching", "query") as progress:
        reached = search(opened.retriever, asked, depth, progress)
    with console.progress("reading the corpus", "passage") as progress:
        reached = read_through(opened.passages, reached, progress)
    found = summary(reached, top_k, depth)
    _show(console, found, top_k, depth)
    hopeless = [each.question for each in reached if each.hopeless]
    for question in hopeless[:_SHOWN]:
        console.print(f"no passage holds the answer: {question.key}: {question.text}", style="dim")
    result: dict[str, Any] = {"index": opened.location, "k": top_k, "depth": depth} | asdict(found)
    result["without_an_answer"] = [question.key for question in hopeless]
    if episodes:
        counted = chances(episodes, reached)
        if not counted and any(episode.score is None or not episode.score.correct for episode in episodes):
            console.warn(f"{run} answered other questions than {questions} holds, by their ids and texts")
        result["wrong_answers"] = {chance.value: count for chance, count in sorted(counted.items())}
        _show_chances(console, result["wrong_answers"])
    with console.progress("trying other settings", "index") as progress:
        progress(0, 1)
        result["suggestions"] = suggestions(opened, reached, found, top_k, depth)
    for suggestion in result["suggestions"]:
        console.print(suggestion)
    if write is not None:
        kept = [question_to_json(each.question) for each in reached if not each.hopeless]
        if not kept:
            raise ConfigError("no question can be answered from this corpus", hint="give the index of another corpus")
        with sole_writer(write):
            _check_place(write, questions)  # again: another process may have been faster
            write_jsonl_atomic(write, kept)
        console.print(f"{len(kept):,} of {len(reached):,} questions are in {write}")
        result["written"] = str(write)
    console.result(result)


def _check_place(write: Path, questions: Path | None) -> None:
    """Raises ConfigError for a file that cannot be written, that is read, or that holds something."""
    if write.is_dir() or not write.parent.is_dir():
        wrong = f"{write} is a folder" if write.is_dir() else f"{write.parent} is no folder"
        raise ConfigError(wrong, hint="give --write a file in a folder that exists")
    if questions is not None and write.exists() and questions.exists() and write.samefile(questions):
        raise ConfigError(f"--write {write} would replace the questions that are read", hint="give another file")
    if write.exists() and (not write.is_file() or write.stat().st_size):
        raise ConfigError(f"{write} is there already", hint="give --write another file, or remove that one")


def _questions(file: Path | None, of_run: Sequence[Question]) -> list[Question]:
    from dgpo_cli.qa_sets import read_questions

    if file is not None:
        return read_questions(file)
    if not of_run:
        raise ConfigError("nothing to audit", hint="give a question file, or --run with an evaluation")
    return list({question.key: question for question in of_run}.values())


def _show(console: Console, found: Audit, k: int, depth: int) -> None:
    rows = [
        ["somewhere in the corpus", percent(found.anywhere)],
        [f"in the first {depth} for the question", percent(found.in_depth)],
        [f"in the first {k} for the question", percent(found.in_k)],
    ]
    if found.by_titles is not None:
        rows.append([f"in the first {k} for a gold title ({found.with_titles:,} questions)", percent(found.by_titles)])
    rows.append(["answered by yes or no", percent(found.yes_no / found.questions)])
    if found.unanswerable:
        rows.append(["unanswerable, by the question file", percent(found.unanswerable / found.questions)])
    rows.append([f"ceiling of EM, {counted(k, 'passage')} a search", percent(found.ceiling)])
    rows.append(["ceiling of EM, any search", percent(found.highest)])
    console.table(counted(found.questions, "question"), ["the answer is", "share"], rows)


def _show_chances(console: Console, found: dict[str, int]) -> None:
    words = {
        "no_chance": "the corpus does not hold the answer",
        "not_found": "the corpus holds it, no search of the episode found it",
        "was_read": "it was read, or none has to be (yes, no, unanswerable)",
    }
    rows = [[words[name], count, percent(count / sum(found.values()))] for name, count in found.items()]
    console.table(f"{sum(found.values()):,} wrong answers", ["why", "number", "share"], rows)
