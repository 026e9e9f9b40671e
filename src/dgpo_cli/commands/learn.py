"""`dgpo learn FOLDER`: from one's own documents to one's own agent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import (
    DeviceOption,
    JsonFlag,
    QuietFlag,
    ReplaceFlag,
    absolute,
    replacing,
    within_64_bits,
)
from dgpo_cli.commands.quickstart.remember import remember
from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.core.figures import counted, percent, percent_range
from dgpo_cli.errors import ConfigError, InputError

if TYPE_CHECKING:
    from dgpo_cli.core.progress import Progress
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.make_questions.settings import MakeQuestionsSettings
    from dgpo_cli.offline.own_documents import QuestionMaking
    from dgpo_cli.offline.project import PathResult
    from dgpo_cli.offline.real import RealRow
    from dgpo_cli.planning.plan import StagePlan

DEMONSTRATED = {"max_turns": 2, "max_new_tokens": 50}  # by the gold teacher mostly: a search in each of two documents


def learn(
    folder: Annotated[Path, typer.Argument(help="Folder of documents.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("agent"),
    student: Annotated[
        str | None, typer.Option(help="Model that learns; SmolLM2-135M-Instruct by default.", show_default=False)
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Model that makes the questions; templates make weaker ones by default.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(callback=within_64_bits, help="Seed of every draw.")] = 0,
    device: DeviceOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier call made in that folder.")] = False,
    replace: ReplaceFlag = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, then stop.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make an agent that looks things up in your documents: index, questions, demonstrations, cold start, evaluation.

    A second call reuses what is done, an interrupted one goes on. The evaluation asks about documents that the training
    did not see. Example: `dgpo learn ~/notes --dry-run`, then `dgpo learn ~/notes`
    """
    from dgpo_cli.core.recipes import shipped
    from dgpo_cli.models.sources import require_models
    from dgpo_cli.offline.ownership import require_stages_place
    from dgpo_cli.retrieval.corpus.folder import Folder

    console = Console(json_output=json, quiet=quiet)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="give a folder of documents")
    if (place := out.resolve()).is_relative_to(folder.resolve()):
        raise ConfigError(f"{out} lies in the folder of documents", hint="give an --out outside it")
    require_stages_place(place)
    if not (files := Folder(folder).readable()):
        raise InputError(f"{folder} holds no usable passage: no file can be read", hint="put .md or .pdf files there")
    require_models(student, teacher)  # before the documents are read
    settings = shipped("learn")
    settings["world"] |= {} if student is None else {"student": absolute(student)}
    if dry_run:
        _tell(console, files, settings, teacher, device or "auto")
        return
    from dgpo_cli.offline.own_documents import OwnDocuments  # after the checks: it imports libraries that compute

    making = _making(settings, place / "index", None if teacher is None else absolute(teacher), seed, device or "auto")
    work = OwnDocuments(
        place, folder.resolve(), making, seed=seed, device=device or "auto", say=console.info, bar=console.progress,
        settings=settings,
    )  # fmt: skip
    work.may_replace = replacing(console, replace)
    with work.alone():
        if fresh:
            work.forget()
        result = work.run()
    _show(console, out, result)


def _making(settings: Mapping[str, Any], index: Path, teacher: str | None, seed: int, device: str) -> QuestionMaking:
    from dgpo_cli.core.config import apply_options
    from dgpo_cli.make_questions.make import make_questions
    from dgpo_cli.make_questions.opening import open_author
    from dgpo_cli.make_questions.settings import MakeQuestionsSettings
    from dgpo_cli.offline.own_documents import QuestionMaking
    from dgpo_cli.retrieval.open import open_index

    own = {"index": str(index), "teacher": teacher, "no_model": teacher is None, "seed": seed, "device": device}
    top_k = settings["rollout"]["top_k"]
    made: MakeQuestionsSettings = apply_options(MakeQuestionsSettings, settings["questions"] | own | {"top_k": top_k})

    def work(run: RunDir, progress: Progress) -> None:
        opened = open_index(made.index, device=made.device)
        run.finish(make_questions(opened, open_author(made, run), made, run.path, progress).to_json())

    return QuestionMaking(asdict(made), work)


def _tell(console: Console, files: list[Path], settings: Mapping[str, Any], teacher: str | None, device: str) -> None:
    """What would be read and made at most, and the memory and the time of the training."""
    from dgpo_cli.core.machine import free_on
    from dgpo_cli.core.recipes import Recipe
    from dgpo_cli.planning.plan import card_of, plan

    kinds = Counter(path.suffix.lower() for path in files)
    size = sum(path.stat().st_size for path in files) / 1e6
    episodes, cold, name = settings["demonstrations"]["questions"], settings["cold-start"], settings["world"]["student"]
    steps = math.ceil(episodes * (1 - cold["validation_share"]) / cold["batch_size"])

    def planned(rollout: Mapping[str, Any]) -> StagePlan:
        recipe = Recipe("learn", "", "", "", {"kd": cold | {"student": name, "rollout": rollout}})
        return plan(recipe, {}, card_of("cpu" if free_on(device)[0] == "cpu" else "80GB"))[0]

    longest = planned(settings["rollout"])
    seconds = steps * sum(planned(settings["rollout"] | DEMONSTRATED).seconds.values())
    shown = ", ".join(f"{count:,} {ending}" for ending, count in sorted(kinds.items()))
    console.print(f"documents: {len(files):,} files ({shown or 'none that can be read'}), {size:.1f} MB")
    console.print(f"questions: of {settings['questions']['passages']:,} passages at most, by {teacher or 'templates'}")
    console.print(
        f"demonstrations: {episodes:,} episodes at most; cold start of {name}: {steps} steps at most, "
        f"{longest.total / 2**30:.1f} GiB, {seconds / 60:.0f} min at most"
    )
    console.print(f"evaluation: {settings['world']['quick_questions']} questions at most about documents of their own")
    console.result(
        {
            "files": len(files), "kinds": dict(kinds), "bytes": round(size * 1e6), "steps": steps,
            "memory_bytes": longest.total, "training_seconds": seconds, "settings": dict(settings),
        }
    )  # fmt: skip


def _show(console: Console, out: Path, result: PathResult[RealRow]) -> None:
    model, row = result.models["cold-start"], result.rows["cold-start"]
    console.print(
        f"{counted(row.questions, 'question')} about documents that the training did not see: EM {percent(row.em)} "
        f"({percent_range(*row.em_interval)}), F1 {percent(row.f1)}, answer retrieved "
        f"{percent(row.retrieved)}, {row.searches:.2f} searches a question"
    )
    remember("dgpo learn", out, trajectories="demonstrations", teacher=model, student=model, model=model, bench="made")
    console.print(f"everything is in {out}/; all figures: {out}/runs/eval-cold-start/report.md")
    console.next("dgpo chat", shell.command("dgpo", "report", out / "runs" / "eval-cold-start"), "dgpo eval")
    console.result(asdict(result))
