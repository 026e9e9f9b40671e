"""`dgpo quickstart`: the whole path, offline, in minutes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.examples import example_questions
from dgpo_cli.commands.common.options import (
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    QuietFlag,
    ReplaceFlag,
    replacing,
    within_64_bits,
)
from dgpo_cli.commands.quickstart.real import run_real
from dgpo_cli.commands.quickstart.remember import remember
from dgpo_cli.console import Console
from dgpo_cli.core.figures import duration, percent, percent_range
from dgpo_cli.core.machine import free_on
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.offline.project import PathResult
    from dgpo_cli.offline.quickstart import Quickstart
    from dgpo_cli.offline.stages import Row

LABELS = {
    "student": "student (reads, cannot search)",
    "teacher": "teacher",
    "kd": "cold start (kd)",
    "kd_longer": "kd continued for dgpo's time",
    "ppo": "ppo",
    "dgpo_k1": "dgpo, k1 in the reward (reference)",
    "dgpo": "dgpo, full-loss",
}


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("quickstart"),
    seed: Annotated[
        int, typer.Option(callback=within_64_bits, help="Seed of the world, the models and every draw.")
    ] = 0,
    device: DeviceOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier quickstart made in that folder.")
    ] = False,
    replace: ReplaceFlag = False,
    search: Annotated[bool, typer.Option("--search", help="Try the recipe's learning rates for the RL rows.")] = False,
    real: Annotated[
        bool,
        typer.Option("--real", help="With a real language model and real questions (some ten minutes on two cores)."),
    ] = False,
    rl: Annotated[
        bool, typer.Option("--rl", help="With --real: go on with a teacher and rows of rewards, for hours.")
    ] = False,
    bench_dir: Annotated[
        Path | None, typer.Option(help="With --real: folder with questions and passages, instead of the hub.")
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Watch a weak student learn to search, offline: world, teacher, cold start, RL, one table.

    A second call reuses what is done. Examples: `dgpo quickstart` · `dgpo quickstart --real`
    """
    from dgpo_cli.core.config import to_toml
    from dgpo_cli.core.recipes import shipped
    from dgpo_cli.offline.ownership import require_stages_place

    console = Console(json_output=json, quiet=quiet)
    require_stages_place(out.resolve())
    free_on(device or "auto")  # refuses a device that cannot be used
    if real or rl or bench_dir is not None:
        if search or not real:
            flag = "--search" if search else "--rl" if rl else "--bench-dir"
            raise ConfigError(f"{flag} has no effect {'with' if real else 'without'} --real", hint="leave it out")
        run_real(
            console,
            out,
            bench_dir,
            seed=seed,
            device=device or "auto",
            rl=rl,
            dry_run=dry_run,
            fresh=fresh,
            replace=replace,
        )
        return
    if dry_run:
        console.print(to_toml(shipped("quickstart")))
        console.result(shipped("quickstart"))
        return
    from dgpo_cli.offline.quickstart import Quickstart

    work = Quickstart(out.resolve(), seed=seed, device=device or "auto", say=console.info, bar=console.progress)
    work.may_replace = replacing(console, replace)
    with work.alone():
        if fresh:
            work.forget()
        if search:
            _search(console, work)
            return
        result = work.run()
    _show(console, result)
    curves = work.curves()
    drawn = _draw(console, curves, out / "learning-curves.png")
    models = result.models
    remember(
        "dgpo quickstart",
        out,
        trajectories="distill-data",
        teacher=models["teacher"],
        student=models["kd"],
        model=models["dgpo"],
        bench="tinyworld",
    )
    console.print(f"{duration(result.seconds)} in all; everything is in {out}/{drawn}")
    console.print(f"ask the model that was just trained: {example_questions(out, 1)[0]}")
    console.next("dgpo chat", "dgpo eval", "dgpo report", "dgpo runs", "dgpo recipes")
    em = {name: row.em for name, row in result.rows.items()}
    console.result(asdict(result) | {"em": em, "curves": curves})


def _search(console: Console, work: Quickstart) -> None:
    found = work.search()
    rows = [[trial.row, trial.changes["lr"], trial.validation_em] for trial in found]
    console.table("best EM on validation questions", ["row", "learning rate", "EM"], rows)
    console.result({"grid": [trial.to_json() for trial in found], "folder": str(work.folder)})


def _show(console: Console, result: PathResult[Row]) -> None:
    rows = []
    for name, label in LABELS.items():
        row = result.rows[name]
        by_hops = [percent(row.em_by_hops.get(hops, 0.0)) for hops in ("1", "2")]
        rows.append([label, percent(row.em), percent_range(*row.em_interval), *by_hops, f"{row.searches:.2f}"])
    questions = result.rows["dgpo"].questions
    columns = ["model", "EM", "95 %", "one hop", "two hops", "searches"]
    console.table(f"{questions} held-out test questions, greedy decoding", columns, rows)


def _draw(console: Console, curves: dict[str, list[tuple[float, float]]], png: Path) -> str:
    """Returns where the picture is, for the last line; nothing without matplotlib, an extra."""
    from dgpo_cli.core.extras import is_installed
    from dgpo_cli.viewing.curves import save_chart, terminal_chart

    x_label, y_label = "training seconds", "validation EM"
    if not console.json_output:
        console.print(terminal_chart(curves, x_label=x_label, y_label=y_label, width=min(90, console.width)))
    if not is_installed("matplotlib"):
        return ""
    save_chart(curves, png, title="quickstart: validation EM", x_label=x_label, y_label=y_label)
    return f", curves in {png.name} there"
