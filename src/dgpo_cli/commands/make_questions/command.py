"""`dgpo make-questions`: questions about one's own documents, each proved to be answerable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.given import recorded, settings_from
from dgpo_cli.commands.common.going_on import show_planned
from dgpo_cli.commands.common.options import (
    ConfigOption,
    DeviceOption,
    DryRunFlag,
    FreshFlag,
    JsonFlag,
    OutOption,
    QuietFlag,
    ResumeOption,
    SeedOption,
    tell_run,
)
from dgpo_cli.commands.common.teacher import NameOption, TokenizerOption, UrlOption, teacher_key
from dgpo_cli.commands.common.training_options import TeacherOption
from dgpo_cli.commands.make_questions.result import remember, show
from dgpo_cli.commands.make_questions.sources import choose_author, choose_documents, index_documents
from dgpo_cli.console import Console

if TYPE_CHECKING:
    from dgpo_cli.make_questions.settings import MakeQuestionsSettings


def make_questions(
    documents: Annotated[
        str | None,
        typer.Argument(help="Corpus, or index folder; the current index by default.", show_default=False),
    ] = None,
    teacher: TeacherOption = None,
    teacher_url: UrlOption = None,
    teacher_name: NameOption = None,
    tokenizer: TokenizerOption = None,
    no_model: Annotated[
        bool | None, typer.Option("--no-model", help="Make weaker questions from titles and first sentences.")
    ] = None,
    passages: Annotated[
        int | None, typer.Option(help="Passages to draw, 1000 by default; each gives two questions at most.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Passages among which a query must find the gold one, 3.")
    ] = None,
    validation: Annotated[float | None, typer.Option(help="Share of the documents, 0.1 by default.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of the documents, 0.1 by default.")] = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    fresh: FreshFlag = False,
    config: ConfigOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("-o", "--set", metavar="NAME=VALUE", help="Any other setting, e.g. -o hops=1."),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make questions about your own documents: of one passage, and of two that share a name.

    A question is kept if its answer stands in its passage, some query finds the passage, and the teacher answers it
    with the passage and not without, nor with one of two. Test questions are about documents of their own.

    Examples: `dgpo make-questions ~/notes --teacher qwen-3b` · `dgpo make-questions indexes/wiki --no-model`
    """
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import RunDir, require_run_place
    from dgpo_cli.make_questions.make import make_questions as made_questions
    from dgpo_cli.make_questions.opening import open_author
    from dgpo_cli.make_questions.settings import MakeQuestionsSettings
    from dgpo_cli.planning.checks import check_asked
    from dgpo_cli.retrieval.open import check_index, open_index

    console = Console(json_output=json, quiet=quiet)
    require_run_place(out, resume, fresh=fresh)
    before = recorded(config, set_, "make-questions")
    given = {"teacher": teacher, "url": teacher_url, "name": teacher_name, "tokenizer": tokenizer}
    index_folder, corpus = choose_documents(console, documents or before.get("index"))
    values = choose_author(console, before, no_model, given) | {
        "index": index_folder,
        "passages": passages,
        "top_k": top_k,
        "validation": validation,
        "test": test,
        "seed": seed,
        "device": device,
    }
    settings: MakeQuestionsSettings = settings_from(
        MakeQuestionsSettings, "make-questions", config=config, options=set_, values=values
    )
    if corpus is None:
        check_index(settings.index)
    at_once = None
    if settings.teacher is not None and settings.is_loaded:
        at_once = check_asked(
            settings.teacher,
            settings.wave,
            settings.max_tokens,
            device=settings.device,
            precision=settings.precision,
            eight_bit=settings.teacher_8bit,
            say=console.info,
        )
    if dry_run:
        show_planned(console, "make-questions", settings, {}, out=out, resume=resume, fresh=fresh)
        return
    if corpus is not None:
        index_documents(console, corpus, Path(settings.index))
    recorded_settings = asdict(settings)
    with RunDir.open(
        "make-questions", recorded_settings, out=out, resume=resume, fresh=fresh, inputs=contents(recorded_settings)
    ) as run:
        tell_run(console, run)
        index = open_index(settings.index, device=settings.device)
        author = open_author(settings, run, key=teacher_key(), at_once=at_once)
        with console.progress("making questions", "passage") as progress:
            made = made_questions(index, author, settings, run.path, progress)
        run.finish(made.to_json())
    show(console, made, run.path)
    remember(console, settings, run.path, made)
    console.result(made.to_json() | {"run": str(run.path)})
