"""Checks of a model by its configuration, before it is loaded. Nothing here imports torch or transformers."""

from __future__ import annotations

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.engine.in_process.families import require_supported
from dgpo_cli.models import hub
from dgpo_cli.models.sources import ModelSource, config_values, context_of, resolve


def readable(name: str) -> ModelSource:
    """Raises ModelError for a model that is neither here nor can be downloaded."""
    source = resolve(name)
    if not source.local:
        hub.must_be_local(source.location)
    return source


def rolled_out(name: str) -> ModelSource:
    """As `readable`, of a model that the engine in this process is to run. Raises ModelError if it cannot."""
    source = readable(name)
    values = config_values(source)
    if values is not None:
        require_supported(name, values)
    return source


def longest_episode(rollout: RolloutSettings, model: str) -> int:
    """Tokens that an episode may have: the settings' limit, or the model's context where that is less."""
    context = context_of(model)
    return rollout.max_tokens if context is None else min(context, rollout.max_tokens)
