"""`dgpo plan`: memory by part and time by phase of a recipe, before anything is downloaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dgpo_cli.commands.common.options import JsonFlag, SetOption
from dgpo_cli.console import Console
from dgpo_cli.core.machine import GIB
from dgpo_cli.errors import ConfigError


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe of `dgpo recipes`, or a file like it.")],
    gpu: Annotated[
        str | None, typer.Option(help="24GB, 80GB, rtx4090, a100, h100, h200, cpu, cpu:16GB; the recipe's card.")
    ] = None,
    set_: SetOption = None,
    json: JsonFlag = False,
) -> None:
    """Estimate what a recipe needs on one card. Exit status 1, with advice, if a stage does not fit.

    Example: `dgpo plan qwen3b-0.5b-24gb --gpu 24GB -o rollout.wave=8`
    """
    from dgpo_cli.core.config import parse_options
    from dgpo_cli.core.recipes import load
    from dgpo_cli.planning import plan as plans
    from dgpo_cli.planning.timing import assumptions

    console = Console(json_output=json)
    chosen = load(recipe)
    if not (gpu or chosen.card):
        raise ConfigError(f"{recipe} names no card", hint="give --gpu: a memory such as 24GB or cpu:16GB, a100, or cpu")
    card = plans.card_of(gpu or chosen.card)
    stages = plans.plan(chosen, parse_options(set_ or ()), card)
    for stage in stages:
        _show(console, stage, card.gib)
    console.print("assumed:\n" + "\n".join(f"- {line}" for line in assumptions(card)))
    plans.require_fit(stages, card)
    console.result(
        {
            "recipe": chosen.name,
            "gpu_gib": card.gib,
            "stages": [
                {
                    "stage": stage.stage,
                    "models": stage.models,
                    "effective_batch": stage.effective_batch,
                    "at_once": stage.at_once,
                    "memory_bytes": stage.parts,
                    "total_bytes": stage.total,
                    "longest_bytes": stage.longest,
                    "seconds_per_step": stage.seconds,
                    "steps": stage.steps,
                    "hours": stage.hours,
                }
                for stage in stages
            ],
            "assumptions": list(assumptions(card)),
        }
    )


def _show(console: Console, stage: Any, gib: float) -> None:
    models = ", ".join(f"{role} {name}" for role, name in stage.models.items())
    rows = [[part, f"{size / GIB:.1f}"] for part, size in stage.parts.items()]
    rows.append([f"all, of {gib:.0f}", f"{stage.total / GIB:.1f}"])
    console.table(f"{stage.stage}: {models}, batch {stage.effective_batch}", ["memory", "GiB"], rows)
    if stage.longest is not None and stage.longest > stage.total:
        console.print(f"if every episode has its longest: {stage.longest / GIB:.1f} GiB")
    at_once = ", ".join(f"{name} {size}" for name, size in stage.at_once.items())
    console.print(f"at once: {at_once}")
    phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in stage.seconds.items())
    run = "" if stage.hours is None else f"; {stage.steps} steps {stage.hours:.1f} h"
    console.print(f"time of a step: {phases}{run}\n")
