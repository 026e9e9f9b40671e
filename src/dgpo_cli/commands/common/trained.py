"""Settings that a model was trained with, as defaults of the next command: what was given wins, with a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dgpo_cli.console import Console

if TYPE_CHECKING:
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.retrieval.rerank import RerankConfig
    from dgpo_cli.training.settings import AskSettings, KDSettings, RLSettings
    from dgpo_cli.training.teacher.settings import DistillDataSettings

Settings = TypeVar("Settings", "DistillDataSettings", "KDSettings", "RLSettings")

AskOption = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--set",
        metavar="NAME=VALUE",
        help="How episodes run, passages are reranked, and the precision: -o rollout.max_observation_tokens=200.",
    ),
]


def ask_options(options: Sequence[str] | None, **flags: int | None) -> tuple[dict[str, int], AskSettings]:
    """Limits of episodes that -o or a flag gives, and all that -o gives. Raises ConfigError."""
    from dgpo_cli.core.config import apply_options, parse_options
    from dgpo_cli.training.settings import AskSettings

    settings = apply_options(AskSettings, parse_options(options or ()))
    given = asdict(settings.rollout) | {name: value for name, value in flags.items() if value is not None}
    return {name: value for name, value in given.items() if value is not None}, settings


def trained_limits(
    console: Console,
    given: Mapping[str, Any],
    limits: tuple[dict[str, int], str],
    model: str,
    rollout: RolloutSettings,
) -> dict[str, int]:
    """Limits that were not given, from `limits` as `search_limits` tells them.

    One line says where they are from, and a warning names each that was given and is another one. Where neither says
    how long an observation is, it takes a quarter of a small context of `model` at most: room for two searches.
    """
    from dgpo_cli.models.sources import context_of

    values, origin = limits
    chosen = {name: value for name, value in values.items() if name not in given}
    if chosen:
        console.info(", ".join(f"{name}: {value}" for name, value in chosen.items()) + f" ({origin})")
    tell_other_limits(console, given, limits)
    context = context_of(model)
    longest = {**given, **chosen}.get("max_tokens", rollout.max_tokens)
    room = replace(rollout, max_tokens=longest).observation_room(context)
    if room is not None and "max_observation_tokens" not in {**given, **chosen}:
        console.info(f"max_observation_tokens: {room} (a quarter of {model}'s context)")
        chosen["max_observation_tokens"] = room
    return chosen


def tell_other_limits(console: Console, given: Mapping[str, Any], limits: tuple[dict[str, int], str]) -> None:
    """Warn of each limit that was given and is not as the model was trained; `limits` as `search_limits` tells them."""
    values, origin = limits
    for name, value in values.items():
        if origin.startswith("as ") and given.get(name, value) != value:
            console.warn(f"{name} is {given[name]}, and {value} would be {origin}: answers may get worse")


def tell_reranker(console: Console, model: str, rerank: RerankConfig) -> None:
    """Warn where passages were in the order of a cross-encoder when the model was trained, and are in another one."""
    from dgpo_cli.formats.protocol import reranker_name
    from dgpo_cli.models.sources import trained_reranker

    trained = trained_reranker(model)
    if trained is not None and (rerank.model is None or reranker_name(rerank.model) != trained):
        here = "are not here" if rerank.model is None else f"are by {reranker_name(rerank.model)} here"
        console.warn(
            f"passages were reranked by {trained} when {model} was trained, and {here}: "
            f"answers may get worse (-o rerank.model=...)"
        )


def asking_rollout(
    console: Console,
    given: Mapping[str, Any],
    model: str,
    *,
    wave: int,
    rerank: RerankConfig,
    temperature: float = 0.0,
) -> RolloutSettings:
    """How a model is asked by people and programs: within the limits that it was trained with, unless others are given.

    See `trained_limits` for what is said of them.
    """
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.models.sources import search_limits

    limits = trained_limits(console, given, search_limits(model), model, RolloutSettings()) | dict(given)
    tell_reranker(console, model, rerank)
    return RolloutSettings(**limits, temperature=temperature, wave=wave, stop_repeats=True)


def as_trained(
    console: Console, settings: Settings, before: Mapping[str, Any], limits: tuple[dict[str, int], str], model: str
) -> Settings:
    """Settings whose rollout, where `before` (--config and -o) leaves it open, has `limits` and suits `model`."""
    # -o gives texts: the settings have the numbers that they mean.
    given = {name: getattr(settings.rollout, name) for name in before.get("rollout", {})}
    changes = trained_limits(console, given, limits, model, settings.rollout)
    tell_reranker(console, model, settings.rerank)
    return replace(settings, rollout=replace(settings.rollout, **changes))  # type: ignore[arg-type]
