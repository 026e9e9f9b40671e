"""Refuses settings that the user named and that the run would not read.

Only settings on the command line count. A recipe or an earlier run's settings serve several methods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from dgpo_cli.errors import ConfigError
from dgpo_cli.training.ingredients import has_critic, kd_objective, needs_teacher, rl_objective, searches
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.teacher.settings import DistillDataSettings


def require_effect(settings: KDSettings | RLSettings | DistillDataSettings, said: Collection[str]) -> None:
    """`said` are settings as -o names them, those of flags too. Raises ConfigError for one without effect."""
    found = _of_script(settings) if isinstance(settings, DistillDataSettings) else _of_training(settings, said)
    for idle, why in found:
        named = next((name for name in sorted(said) if name == idle or name.startswith(f"{idle}.")), None)
        if named is not None:
            raise ConfigError(f"{named} has no effect: {why}", hint="leave it out")


def _of_script(settings: DistillDataSettings) -> Iterator[tuple[str, str]]:
    if settings.written:
        yield "rollout.temperature", f"{settings.teacher} is a script, and nothing is drawn"
    if settings.demonstrations is not None:
        for name in ("questions", "bench_dir"):
            yield name, "the demonstrations hold the questions"
    if settings.teacher_url is None:
        yield "server", "no teacher is asked at a --teacher-url"


def _of_training(settings: KDSettings | RLSettings, said: Collection[str]) -> Iterator[tuple[str, str]]:
    if "steps" in said and settings.steps is not None:
        yield "epochs", f"steps = {settings.steps} says how long to train"
    if settings.on_collapse != "rollback":
        for name in ("collapse.lr_factor", "collapse.max_rollbacks"):
            yield name, f"on_collapse = {settings.on_collapse} never goes back"
    if isinstance(settings, RLSettings):
        yield from _of_rl(settings)
    else:
        yield from _of_kd(settings)


def _of_rl(settings: RLSettings) -> Iterator[tuple[str, str]]:
    objective = rl_objective(settings)
    if not needs_teacher(objective):
        yield "teacher_8bit", f"method {settings.method} has no teacher"
    if not has_critic(objective):
        for name in ("critic", "critic_lr", "critic_warmup_lr_steps", "critic_warmup_steps"):
            yield name, f"method {settings.method} has no critic"


def _of_kd(settings: KDSettings) -> Iterator[tuple[str, str]]:
    objective = kd_objective(settings)
    if not needs_teacher(objective):
        yield "teacher_8bit", f"method {settings.method} reads no teacher"
    if settings.eval_data is not None:
        yield "validation_share", "the questions of eval_data decide which weights are the best"
        return
    yield "eval_limit", "there is no eval_data; validation_share says how much is held out"
    if not searches(objective):
        for name in ("index", "rollout", "rerank"):
            yield name, f"method {settings.method} searches nothing, and there is no eval_data"
