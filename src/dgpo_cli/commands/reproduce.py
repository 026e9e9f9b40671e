"""`dgpo reproduce`: every row of the paper's table on the offline world, with intervals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.options import (
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    QuietFlag,
    ReplaceFlag,
    replacing,
    within_64_bits,
)
from dgpo_cli.console import Console
from dgpo_cli.core.figures import percent
from dgpo_cli.core.folders import require_place
from dgpo_cli.core.machine import free_on
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.offline.reproduce import Ladder, Record

AGAINST = "dgpo"


def reproduce(
    scale: Annotated[str, typer.Option(help="tiny: the offline world, on a CPU.")] = "tiny",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many seeds; 3 by default.", show_default=False)
    ] = None,
    first_seed: Annotated[
        int,
        typer.Option(min=0, callback=within_64_bits, help="The first of them; several machines can share the work."),
    ] = 0,
    teacher: Annotated[str, typer.Option(help="How good the teacher is: weak, fair, strong.")] = "fair",
    methods: Annotated[str | None, typer.Option(help="Rows, comma-separated; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of models and runs.")] = Path("reproduce"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of the finished rows' records and of the page; OUT/results by default.")
    ] = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="Try the recipe's grid on validation questions of the first seed instead."),
    ] = False,
    replace: ReplaceFlag = False,
    device: DeviceOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make every row of the paper's table and its ablations on the offline world, and compare them.

    Finished rows are kept as small records: the same command goes on after an interruption, also on another machine
    that has the records. Example: `dgpo reproduce --seeds 3 --methods kd,ppo,dgpo`
    """
    from dgpo_cli.core.config import to_toml
    from dgpo_cli.core.extras import require
    from dgpo_cli.offline.ownership import require_stages_place
    from dgpo_cli.offline.reproduce_rows import choose, recipe, row_specs

    console = Console(json_output=json, quiet=quiet)
    require_place(results or out)
    free_on(device or "auto")  # refuses a device that cannot be used
    if search and seeds is not None:
        raise ConfigError("--search tries the grid on one seed, so --seeds has no effect", hint="give --first-seed N")
    settings = recipe(scale, teacher)
    numbers = range(first_seed, first_seed + (1 if search else seeds or 3))
    require_stages_place(*(out.resolve() / teacher / f"seed-{number}" for number in numbers))
    names = choose(row_specs(settings), None if methods is None else [m.strip() for m in methods.split(",")])
    if not search:
        require("matplotlib", "plots", "the page of `dgpo reproduce`")
    if dry_run:
        console.print(to_toml(settings))
        console.result({"rows": names, "settings": settings})
        return
    from dgpo_cli.offline.reproduce import Ladder

    records = (results or out / "results").resolve() / teacher
    ladders = [
        Ladder(
            out.resolve() / teacher / f"seed-{number}", records, seed=number, device=device or "auto", say=console.info,
            bar=console.progress, settings=settings,
        )
        for number in numbers
    ]  # fmt: skip
    for ladder in ladders:
        ladder.may_replace = replacing(console, replace)
    if search:
        with ladders[0].alone():
            _search(console, ladders[0], names)
        return
    made = []
    for ladder in ladders:
        console.info(f"seed {ladder.seed}")
        with ladder.alone():
            made.append(ladder.run(names))
    _show(console, ladders, made, records, scale, teacher)


def _search(console: Console, ladder: Ladder, names: list[str]) -> None:
    found = ladder.search(names)
    rows = []
    for trial in found:
        tuned = ", ".join(f"{name} {value:g}" for name, value in trial.changes.items() if name != "lr")
        rows.append([trial.row, f"{trial.changes['lr']:g}", tuned, percent(trial.validation_em)])
    console.table("best EM on validation questions", ["row", "learning rate", "setting", "EM"], rows)
    console.result({"grid": [trial.to_json() for trial in found]})


def _show(
    console: Console, ladders: list[Ladder], made: list[dict[str, Record]], folder: Path, scale: str, teacher: str
) -> None:
    from dgpo_cli.core.records import write_atomic
    from dgpo_cli.offline.ladder import HEADER, cells, page
    from dgpo_cli.offline.reproduce import table
    from dgpo_cli.viewing.curves import save_chart

    rows = table(ladders[0].specs, made, AGAINST)
    console.table(
        f"{_questions(made)} held-out test questions, greedy decoding", list(HEADER), [cells(r) for r in rows]
    )
    # One seed's curves: those of several in one picture cannot be told apart.
    curves = {record.row: record.validation for record in made[0].values() if record.validation}
    seeds = ", ".join(str(ladder.seed) for ladder in ladders)
    save_chart(
        curves,
        folder / "learning-curves.png",
        title=f"validation EM, seed {ladders[0].seed}",
        x_label="training seconds",
        y_label="EM",
    )
    method = (
        f"EM in percent on {_questions(made)} held-out test questions, greedy. Intervals of 95 % are bootstraps; the "
        f"differences to `{AGAINST}` are paired by question. `paper` is the paper's mean over its seven sets: another "
        "task, other models, one run each, and only its order can be compared."
    )
    source = (
        f"Written by `dgpo reproduce --scale {scale} --teacher {teacher}` from the records beside this page; "
        f"seeds {seeds}."
    )
    text = page(
        rows,
        title=f"The paper's rows, scale {scale}, {teacher} teacher",
        notes=[source, method],
        picture="learning-curves.png",
    )
    write_atomic(folder / "README.md", text)
    console.print(f"records, page and curves: {folder}")
    shown = [asdict(row) | {"em": row.mean, "em_by_seed": list(row.em)} for row in rows]
    console.result({"rows": shown, "results": str(folder)})


def _questions(made: list[dict[str, Record]]) -> str:
    return f"{sum(records['teacher'].result.questions for records in made):,}"
