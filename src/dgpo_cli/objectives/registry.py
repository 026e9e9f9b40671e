"""Names of the training objectives. Strings, so that `--help` does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dgpo_cli.core import registry
from dgpo_cli.core.config import apply_options, require_ranges

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


def objective_class(name: str) -> Any:
    """The class of an objective. Raises ConfigError for an unknown name, or one of something else."""
    return registry.load(OBJECTIVES, name, "method", has=("Config", "configure", "loss"))


def create(name: str, options: Mapping[str, object]) -> Objective:
    """The objective `name` with `options` over its defaults. Raises ConfigError for an unknown name or option."""
    objective = objective_class(name)
    config = apply_options(objective.Config, objective.configure(dict(options)))
    require_ranges(config)
    result: Objective = objective(config)
    return result
