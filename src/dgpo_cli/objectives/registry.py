"""Names of the training objectives. Strings, so that `--help` does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dgpo_cli.core import registry
from dgpo_cli.core.config import apply_options

if TYPE_CHECKING:
    from dgpo_cli.objectives.base import Objective

OBJECTIVES: dict[str, str] = {
    "seqkd": "dgpo_cli.objectives.seqkd:SeqKD",
    "kd": "dgpo_cli.objectives.kd:KD",
    "gkd": "dgpo_cli.objectives.gkd:GKD",
    "distillm": "dgpo_cli.objectives.distillm:DistiLLM",
    "taid": "dgpo_cli.objectives.taid:TAID",
    "minillm": "dgpo_cli.objectives.minillm:MiniLLM",
    "opd": "dgpo_cli.objectives.opd:OPD",
    "ppo": "dgpo_cli.objectives.ppo:PPO",
    "grpo": "dgpo_cli.objectives.grpo:GRPO",
    "dgpo": "dgpo_cli.objectives.dgpo:DGPO",
}


def create(name: str, options: Mapping[str, object]) -> Objective:
    """The objective `name` with `options` over its defaults. Raises ConfigError for an unknown name or option."""
    objective = registry.load(OBJECTIVES, name, "method")
    result: Objective = objective(apply_options(objective.Config, objective.configure(dict(options))))
    return result
