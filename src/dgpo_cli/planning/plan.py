"""Memory by part and time by phase of a recipe on one card, before anything is downloaded or started."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.config import apply_options, parse_options
from dgpo_cli.core.machine import GIB, free_main, num_cores
from dgpo_cli.core.recipes import Recipe, merged
from dgpo_cli.core.setting_names import as_today
from dgpo_cli.errors import ConfigError
from dgpo_cli.models import gguf
from dgpo_cli.models.shapes import is_listed
from dgpo_cli.models.sources import context_of
from dgpo_cli.planning.timing import CORE_FLOPS, Card, Speed, seconds_by_phase
from dgpo_cli.planning.writing import Writing
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.jobs import training_job
from dgpo_cli.training.teacher.settings import DistillDataSettings

CARDS: dict[str, Card] = {  # makers' data sheets: memory in GiB, dense bf16 arithmetic per second, bytes per second
    "rtx4090": Card(24, 165e12, 1.01e12),
    "a6000": Card(48, 155e12, 0.77e12),
    "a100": Card(80, 312e12, 2.04e12),
    "h100": Card(80, 989e12, 3.35e12),
    "h200": Card(141, 989e12, 4.8e12),
}
CPU_BANDWIDTH = 20e9  # assumed, of a machine's memory
# Settings of each stage, and placeholders for required settings that do not change the plan.
_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "distill-data": (DistillDataSettings, {"teacher": "", "index": "", "questions": ""}),
    "kd": (KDSettings, {"student": "", "teacher": "", "trajectories": ""}),
    "rl": (RLSettings, {"student": "", "teacher": None, "index": "", "questions": ""}),
}


@dataclass(frozen=True, slots=True)
class StagePlan:
    stage: str
    models: dict[str, str]
    effective_batch: int
    at_once: dict[str, int]  # settings that say how much goes through the models at once
    parts: dict[str, float]  # bytes
    seconds: dict[str, float]  # of one step, by phase
    steps: int | None  # None where the number of trajectories decides
    remedies: dict[str, str]  # settings that still make a part smaller, by part
    longest: float | None = None  # bytes if every episode has its longest, where `parts` counts their usual length
    least: float = 0.0  # bytes with all remedies, one after the other

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def remedy(self) -> str | None:
        """The one for the largest part that has one."""
        parts = sorted(self.parts, key=lambda name: -self.parts[name])
        return next((self.remedies[name] for name in parts if name in self.remedies), None)

    @property
    def hours(self) -> float | None:
        """Of the run, or None where the number of steps is not known."""
        return None if self.steps is None else self.steps * sum(self.seconds.values()) / 3600


def card_of(name: str) -> Card:
    """A card by name, or any memory such as 24GB at the speed of the largest card that has no more.

    `cpu` is this machine without a GPU and the memory that is free in it; `cpu:16GB` any machine of as many cores.
    """
    key = name.lower().replace(" ", "")
    given = re.fullmatch(r"cpu(?::([0-9]{1,6})gb?)?", key)
    if given is not None:
        gib = float(given[1]) if given[1] else free_main() / GIB
        return Card(gib, num_cores() * CORE_FLOPS, CPU_BANDWIDTH, accelerated=False)
    if key in CARDS:
        return CARDS[key]
    size = re.fullmatch(r"([0-9]{1,6})gb?", key)
    if size is None or not int(size[1]):
        raise ConfigError(
            f"unknown card {name[:40]!r}",
            hint=f"give a memory such as 24GB or cpu:16GB, or one of: cpu, {', '.join(CARDS)}",
        )
    gib = int(size[1])
    like = max((c for c in CARDS.values() if c.gib <= gib), key=lambda c: c.gib, default=None)
    like = like or CARDS["rtx4090"]
    return Card(gib, like.flops, like.bandwidth)


def plan(recipe: Recipe, options: Mapping[str, Any], card: Card) -> list[StagePlan]:
    """Every stage of a recipe with `options` over those that know them. Raises ConfigError as the command would."""
    made = []
    known = {stage: set(kind.__dataclass_fields__) for stage, (kind, _) in _KINDS.items()}
    if unknown := [name for name in options if not any(as_today(s, {name: ""}).keys() <= known[s] for s in known)]:
        raise ConfigError(f"no stage has an option {unknown[0]!r}", hint="`dgpo recipes NAME` shows settings")
    for stage, table in recipe.stages.items():
        kind, needed = _KINDS[stage]
        own = {key: value for key, value in as_today(stage, options).items() if key in known[stage]}
        student = recipe.stages.get("kd", {}).get("student", "qwen-0.5b-kd")

        def planned(
            options: Mapping[str, Any],
            stage: str = stage,
            kind: Any = kind,
            begun: Mapping[str, Any] = needed | merged(table, own),
            student: str = student,
        ) -> StagePlan:
            return _stage(stage, apply_options(kind, merged(begun, options)), student, card)

        now = planned({})
        made.append(replace(now, least=_least(now, planned)))
    return made


def _least(now: StagePlan, planned: Callable[[Mapping[str, Any]], StagePlan]) -> float:
    """Bytes where every remedy is taken, the one for the largest part first, until there is none."""
    taken: Mapping[str, Any] = {}
    while (remedy := now.remedy) is not None:
        taken = merged(taken, parse_options([remedy.removeprefix("-o ")]))
        now = planned(taken)
    return now.total


def _in_context(settings: Any, name: str) -> Any:
    """The settings with episodes that the context of a folder, run or cached model holds, as a start counts them."""
    known = is_listed(name) or gguf.is_gguf(Path(name).expanduser())
    context = None if known else context_of(name)
    if context is None or context >= settings.rollout.max_tokens:
        return settings
    return replace(settings, rollout=replace(settings.rollout, max_tokens=context))


def _stage(stage: str, settings: Any, student: str, card: Card) -> StagePlan:
    if stage == "distill-data":
        settings = _in_context(settings, settings.teacher)
        rollout: RolloutSettings = settings.rollout
        writing = Writing.of(
            settings.teacher,
            rollout,
            device=card.device,
            eight_bit=settings.teacher_8bit,
            precision=settings.precision,
        )
        parts = writing.parts(rollout.wave)
        speed = Speed(writing.shape, None, rollout, rollout.wave, card, eight_bit=settings.teacher_8bit)
        seconds = {"rollout": seconds_by_phase(speed)["rollout"]}
        at_once = {"rollout.wave": rollout.wave}
        return StagePlan(
            stage,
            {"teacher": settings.teacher},
            rollout.wave,
            at_once,
            parts,
            seconds,
            None,
            _remedies(settings),
            sum(writing.parts(rollout.wave, longest=True).values()),
        )
    rl = stage == "rl"
    name = settings.student or student
    settings = _in_context(settings, name)
    rollout = settings.rollout
    job = training_job(settings, student=name, device=card.device)
    teacher = None if job.reader is None else settings.teacher
    speed = Speed(
        job.student,
        job.reader,
        rollout,
        settings.batch_size,
        card,
        eight_bit=settings.teacher_8bit,
        critic=rl,
        shared_critic=not job.own_critic,
        reference=job.reference,
        checkpointing=job.checkpointing,
    )
    seconds = seconds_by_phase(speed)
    if not rl:
        seconds = {"update": seconds["update"] + seconds["signals"]}
    models = {"student": name} | ({"teacher": teacher} if teacher else {})
    at_once = {"micro_batch_tokens": job.tokens, "chunk_tokens": settings.chunk_tokens}
    if job.slots:
        at_once["rollout.wave"] = rollout.wave
    return StagePlan(
        stage,
        models,
        settings.batch_size,
        at_once,
        memory.in_process(job),
        seconds,
        settings.steps,
        _remedies(settings),
    )


def _remedies(settings: Any) -> dict[str, str]:
    """Settings that can still be reduced, by the part that they make smaller."""
    found = {}
    if not settings.teacher_8bit:
        found["weights" if isinstance(settings, DistillDataSettings) else "teacher"] = "-o teacher_8bit=true"
    if settings.rollout.wave > 8:
        found["KV cache"] = f"-o rollout.wave={settings.rollout.wave // 2}"
    if isinstance(settings, DistillDataSettings):
        return found
    if settings.lora.rank is None and not settings.freeze_embeddings:
        found["gradients"] = "-o lora.rank=16"
    if settings.optimizer == "adamw":
        found["optimizer"] = "-o optimizer=adamw-8bit"
    if isinstance(settings, RLSettings) and settings.critic == "own":
        found["critic weights"] = "-o critic=shared"
    if not settings.gradient_checkpointing:
        found["activations"] = "-o gradient_checkpointing=true"
    elif settings.micro_batch_tokens > settings.rollout.max_tokens:
        for part in ("activations", "layer in hand", "teacher's pass"):
            found[part] = f"-o micro_batch_tokens={settings.rollout.max_tokens}"
    if settings.chunk_tokens > 128:
        found["vocabulary chunk"] = f"-o chunk_tokens={settings.chunk_tokens // 2}"
    return found


def fits(stage: StagePlan, card: Card) -> bool:
    return stage.total <= card.gib * GIB


def require_fit(plans: list[StagePlan], card: Card) -> None:
    """Raises ConfigError that names the largest part and the setting to change, where a stage does not fit."""
    for stage in plans:
        if fits(stage, card):
            continue
        largest, size = max(stage.parts.items(), key=lambda item: item[1])
        hint = "no setting makes this fit: take a larger card, or smaller models"
        if stage.least <= card.gib * GIB:
            hint = f"try {stage.remedy}"
        raise ConfigError(
            f"[{stage.stage}] needs {stage.total / GIB:.1f} GiB of {card.gib:.0f}; the largest part is "
            f"{largest} with {size / GIB:.1f} GiB",
            hint=hint,
        )
