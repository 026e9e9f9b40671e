"""The result of `dgpo make-questions`, and the next commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_cli.commands.common.next_steps import after_make_questions
from dgpo_cli.commands.common.options import absolute
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.core.workspace import Workspace

if TYPE_CHECKING:
    from dgpo_cli.make_questions.make import MadeQuestions
    from dgpo_cli.make_questions.settings import MakeQuestionsSettings


def show(console: Console, made: MadeQuestions, folder: Path) -> None:
    """The number of questions by what became of them, and the files."""
    from dgpo_cli.make_questions.candidate import Fate

    hops = sorted(made.fates)
    rows = [
        [fate.value, *(made.fates[number][fate] for number in hops)]
        for fate in Fate
        if any(made.fates[number][fate] for number in hops)
    ]
    names = {1: "one hop", 2: "two hops"}
    console.table(counted(made.passages, "passage"), ["what became of it", *(names[number] for number in hops)], rows)
    for side, count in made.files.items():
        console.print(
            f"{side}: {counted(count, 'question')} in {folder / side}.jsonl" if count else f"{side}: no question"
        )


def remember(console: Console, settings: MakeQuestionsSettings, folder: Path, made: MadeQuestions) -> None:
    """Remember defaults for the next commands: the index, the questions for training and those for evaluation."""
    from dgpo_cli.make_questions.candidate import QA_SET

    values: dict[str, str] = {"index": settings.index}
    if made.files["train"]:
        values["questions"] = absolute(str(folder / "train.jsonl"))
    if made.files["test"]:
        values |= {"bench": QA_SET, "bench_dir": absolute(str(folder))}
    if settings.teacher is not None and settings.is_loaded:
        values["teacher"] = settings.teacher
    Workspace().remember(by="dgpo make-questions", **values)
    if made.files["train"]:
        console.next(*after_make_questions(teacher=settings.is_loaded))
