"""`dgpo recipes`: the settings files that are shipped, and whether each fits its card."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dgpo_cli.commands.common.options import JsonFlag
from dgpo_cli.console import Console


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one; all are listed without.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the shipped recipes, or print one. `--config NAME` of distill-data, kd and rl takes its part of it.

    Example: `dgpo recipes qwen3b-0.5b-24gb`
    """
    from dgpo_cli.core import recipes as shipped

    console = Console(json_output=json)
    if name is not None:
        recipe = shipped.load(name)
        console.print(shipped.text(name))
        console.result({"name": recipe.name, "title": recipe.title, "note": recipe.note, "stages": recipe.stages})
        return
    rows = [_row(shipped.load(found)) for found in shipped.names()]
    console.table(
        "",
        ["recipe", "what", "stages", "batch", "card", "does not fit"],
        [
            [r["name"], r["title"], ", ".join(r["stages"]), r["effective_batch"], r["card"], ", ".join(r["too_large"])]
            for r in rows
        ],
    )
    console.print("Memory and time of one: dgpo plan NAME. Use it: dgpo rl --config NAME")
    console.result({"recipes": rows})


def _row(recipe: Any) -> dict[str, Any]:
    from dgpo_cli.planning.plan import card_of, fits, plan

    card = card_of(recipe.card)
    stages = plan(recipe, {}, card)
    return {
        "name": recipe.name,
        "title": recipe.title,
        "card": recipe.card,
        "stages": [stage.stage for stage in stages],
        "models": {stage.stage: stage.models for stage in stages},
        "effective_batch": stages[-1].effective_batch,
        "too_large": [stage.stage for stage in stages if not fits(stage, card)],
    }
