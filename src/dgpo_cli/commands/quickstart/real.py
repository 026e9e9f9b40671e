"""`dgpo quickstart --real`: a real language model learns to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_cli.commands.common.examples import example_questions
from dgpo_cli.commands.common.options import replacing
from dgpo_cli.commands.quickstart.remember import remember
from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.errors import InputError

if TYPE_CHECKING:
    from dgpo_cli.offline.project import PathResult
    from dgpo_cli.offline.real import RealRow


def run_real(
    console: Console,
    out: Path,
    bench_dir: Path | None,
    *,
    seed: int,
    device: str,
    rl: bool,
    dry_run: bool,
    fresh: bool,
    replace: bool,
) -> None:
    """The short path, or with `rl` the longer one; says at the end how to talk to the model."""
    from dgpo_cli.core.config import to_toml
    from dgpo_cli.core.recipes import shipped
    from dgpo_cli.qa_sets.real import HUB, HUB_SETS, files

    if dry_run:
        settings = shipped("quickstart-real")
        sets = _require_hub(HUB, HUB_SETS) if bench_dir is None else list(files(bench_dir))
        console.print(to_toml(settings))
        console.result(settings | {"sets": sets})
        return
    if bench_dir is None:
        console.info(f"questions and passages: {', '.join(HUB_SETS)} of {HUB} on the hub (or give --bench-dir DIR)")
    else:
        files(bench_dir)  # raises an error before anything is made
    from dgpo_cli.offline.real import RealPath

    place = None if bench_dir is None else bench_dir.resolve()
    work = RealPath(out.resolve(), place, seed=seed, device=device, say=console.info, bar=console.progress)
    work.may_replace = replacing(console, replace)
    with work.alone():
        if fresh:
            work.forget()
        result = work.ladder() if rl else work.run()
    _show(console, result)
    models = result.models
    cold, runs = models["cold-start"], out / "runs"
    chat = shell.command("dgpo", "chat", "--model", runs / "cold-start")
    remember(
        "dgpo quickstart --real",
        out,
        trajectories="demonstrations",
        teacher=models.get("teacher", cold),
        student=models.get("student", cold),
        model=cold,
    )
    console.print(
        f"{result.seconds:.0f} s in this call; everything is in {out}/, figures are in {out}/results.json\n"
        f"Talk to it over those passages:  dgpo chat\n"
        f"A question that it can look up:  {example_questions(out, 1)[0]}\n"
        f"Over texts of your own:          dgpo index FOLDER, then {chat}\n"
        f"Look at what it did:             dgpo report {shell.word(runs / 'eval-cold-start')}"
    )
    if not rl:
        given = () if bench_dir is None else ("--bench-dir", bench_dir)
        longer = shell.command("dgpo", "quickstart", "--real", "--rl", *given, "--out", out)
        console.print(f"Go on with rewards, for hours:   {longer}")
    console.result(asdict(result))


def _require_hub(repo: str, sets: Sequence[str]) -> list[str]:
    """The sets. Raises InputError where one is neither in the hub library's cache nor can be fetched."""
    from huggingface_hub import try_to_load_from_cache

    from dgpo_cli.core.hub import unreachable

    for name in sets:
        kept = try_to_load_from_cache(repo, f"{name}.json", repo_type="dataset")
        if not isinstance(kept, str) and (reason := unreachable()):
            raise InputError(
                f"questions and passages of {name} are not cached, and {reason}",
                hint="give files of the same form: --bench-dir DIR",
            )
    return list(sets)


def _show(console: Console, result: PathResult[RealRow]) -> None:
    from dgpo_cli.core.figures import percent, percent_range

    columns = ["model", "questions", "EM", "95 %", "F1", "searches", "answered", "retrieved"]
    rows = [
        [
            name,
            row.questions,
            percent(row.em),
            percent_range(*row.em_interval),
            percent(row.f1),
            f"{row.searches:.2f}",
            percent(row.answered),
            percent(row.retrieved),
        ]
        for name, row in result.rows.items()
    ]
    console.table("held-out questions, greedy decoding", columns, rows)
