"""Settings as memory: what a training stage keeps, and which sizes make it fit. `plan` and every start count by this.

Sizes that are fitted decide how much goes through the models at once, never what a step computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dgpo_cli.core import schema
from dgpo_cli.core.machine import GIB, MARGIN, free_on
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.shapes import Shape, shape_of
from dgpo_cli.objectives.base import Need
from dgpo_cli.objectives.registry import create
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.memory import Job

FILE = "sizes.json"  # of a run folder
_LEAST_CHUNK, _LEAST_WAVE = 32, 8

Training = TypeVar("Training", KDSettings, RLSettings)
Sizes = dict[str, int | bool]


@dataclass(frozen=True, slots=True)
class Room:
    """Of a device: its kind, and the bytes that a run may take of it."""

    device: str  # cpu, cuda, mps
    bytes: int

    @property
    def accelerated(self) -> bool:
        return self.device == "cuda"

    @classmethod
    def on(cls, device: str, limit_gib: float | None = None, sharers: int = 1) -> Room:
        """What is free there, less a margin, or the limit that was set. Raises ConfigError for an unusable device."""
        kind, free = free_on(device)
        room = int(free * (1 - MARGIN)) if limit_gib is None else int(limit_gib * GIB)
        return cls(kind, room // (sharers if kind == "cpu" else 1))


def training_job(
    settings: KDSettings | RLSettings, *, student: str, accelerated: bool, longest: int | None = None
) -> Job:
    """`longest` tokens of a sequence, where that is known; the most that an episode may have otherwise.

    Raises ConfigError where a model's size is not known.
    """
    rl = isinstance(settings, RLSettings)
    rollout = settings.rollout
    objective = create(settings.method, settings.objective)
    reads = {Need.TEACHER_DISTRIBUTION, Need.TEACHER_LOGPROBS} & objective.needs
    writes = objective.on_policy or objective.teacher_writes or (not rl and settings.eval_data is not None)
    length = rollout.max_tokens if longest is None else longest
    tokens = tokens_at_once(settings, length)
    return Job(
        student=shape_of(student),
        reader=shape_of(settings.teacher) if reads and settings.teacher is not None else None,
        reader_8bit=settings.teacher_8bit,
        distribution=Need.TEACHER_DISTRIBUTION in objective.needs,
        rl=rl,
        reference=Need.REFERENCE_LOGPROBS in objective.needs,
        tokens=tokens,
        trained=tokens,
        chunk=settings.chunk_tokens,
        slots=rollout.wave if writes or (not rl and settings.index is not None) else 0,
        capacity=rollout.max_tokens,
        checkpointing=settings.gradient_checkpointing,
        accelerated=accelerated,
        shared_critic=isinstance(settings, RLSettings) and settings.critic == "shared",
        adam_8bit=settings.optimizer == "adamw-8bit",
    )


def tokens_at_once(settings: KDSettings | RLSettings, longest: int) -> int:
    """Tokens of the largest micro-batch: a step has no more, and one sequence is never cut."""
    samples = 1
    if isinstance(settings, RLSettings):
        samples = settings.samples or create(settings.method, settings.objective).default_samples
    return max(longest, min(settings.micro_batch_tokens, settings.batch_size * samples * longest))


def with_sizes(settings: Training, sizes: Sizes) -> Training:
    """Settings with fitted sizes, by the names that -o has for them."""
    own = {name: value for name, value in sizes.items() if "." not in name}
    wave = sizes.get("rollout.wave", settings.rollout.wave)
    return replace(settings, rollout=replace(settings.rollout, wave=int(wave)), **own)  # type: ignore[arg-type]


def kept_sizes(folder: Path, sizes: Sizes) -> Sizes:
    """The sizes that a run began with, kept in its folder: it goes on with them whatever memory is free by then."""
    file = folder / FILE
    if not file.is_file():
        keep_sizes(folder, sizes)
        return sizes
    found: Sizes = schema.read_record(file, _SIZES, hint="start again with --fresh")
    return found


def keep_sizes(folder: Path, sizes: Sizes) -> None:
    write_atomic(folder / FILE, json.dumps(sizes) + "\n")


def current(settings: KDSettings | RLSettings) -> Sizes:
    return {
        "micro_batch_tokens": settings.micro_batch_tokens,
        "rollout.wave": settings.rollout.wave,
        "chunk_tokens": settings.chunk_tokens,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def halved(settings: KDSettings | RLSettings) -> Sizes:
    """Half of everything that goes through the models at once, with activations computed again."""
    now = {name: max(1, value // 2) for name, value in current(settings).items()}
    return now | {"gradient_checkpointing": True}


def as_options(sizes: Sizes) -> str:
    return " ".join(f"-o {name}={_text(value)}" for name, value in sizes.items())


def needed(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()) / GIB:.1f} GiB"


def fitted(
    settings: Training, parts: Callable[[Training], dict[str, float]], room: Room, given: Collection[str], longest: int
) -> Sizes:
    """Sizes, of those that were not given, with which `parts` stays within `room`; none where it does already.

    Halves what is largest, in the order in which it costs least time. Raises ConfigError where that is not enough.
    """
    sizes: Sizes = {}
    now = settings
    while sum(parts(now).values()) > room.bytes:
        for name, value in _smaller(now, longest):
            if name in given:
                continue
            tried = with_sizes(now, {name: value})
            if sum(parts(tried).values()) < 0.99 * sum(parts(now).values()):
                sizes[name], now = value, tried
                break
        else:
            raise ConfigError(*_too_large(settings, now, parts, room, given, longest))
    return sizes


def _smaller(settings: KDSettings | RLSettings, longest: int) -> list[tuple[str, int | bool]]:
    """Next smaller values by setting, in the order in which they are tried."""
    rollout = settings.rollout
    steps: list[tuple[str, int | bool]] = []
    tokens = tokens_at_once(settings, longest)
    if tokens > longest:
        steps.append(("micro_batch_tokens", max(longest, tokens // 2)))
    if rollout.wave > _LEAST_WAVE:
        steps.append(("rollout.wave", max(_LEAST_WAVE, rollout.wave // 2)))
    if not settings.gradient_checkpointing:
        steps.append(("gradient_checkpointing", True))
    if settings.chunk_tokens > _LEAST_CHUNK:
        steps.append(("chunk_tokens", max(_LEAST_CHUNK, settings.chunk_tokens // 2)))
    if rollout.wave > 1:
        steps.append(("rollout.wave", rollout.wave // 2))
    return steps


def _too_large(
    settings: Training,
    smallest: Training,
    parts: Callable[[Training], dict[str, float]],
    room: Room,
    given: Collection[str],
    longest: int,
) -> tuple[str, str]:
    """Message and hint: the settings that would fit, those that change what is computed last."""
    asked = parts(smallest)
    largest, size = max(asked.items(), key=lambda item: item[1])
    message = (
        f"this run needs {needed(asked)} and {room.bytes / GIB:.1f} GiB of {room.device} memory are free for it; the "
        f"largest part is {largest} with {size / GIB:.1f} GiB"
    )
    freed = [name for name in given if name in _FITTED]
    if freed:
        try:
            found = fitted(settings, parts, room, set(given) - set(freed), longest)
        except ConfigError:
            found = {}
        if found:
            return message, f"these would fit: {as_options(found)}"
    taken: list[str] = []
    for option in _otherwise(smallest):
        taken.append(option)
        smallest = _apply(smallest, option)
        if sum(parts(smallest).values()) <= room.bytes:
            return message, f"this would fit: {' '.join(taken)}"
    return message, "take smaller models, shorter episodes (-o rollout.max_tokens=1024), or a machine with more memory"


_FITTED = ("micro_batch_tokens", "rollout.wave", "gradient_checkpointing", "chunk_tokens")
_SIZES = schema.record(
    {}, dict.fromkeys(_FITTED, schema.whole(1)) | {"gradient_checkpointing": schema.FLAG}, other=None
)


def _otherwise(settings: KDSettings | RLSettings) -> list[str]:
    """Settings that take less and change what is computed, so that only the user may set them."""
    found: list[str] = []
    if settings.optimizer == "adamw":
        found.append("-o optimizer=adamw-8bit")
    if not settings.teacher_8bit:
        found.append("--teacher-8bit")
    if isinstance(settings, RLSettings) and settings.critic == "own":
        found.append("-o critic=shared")
    return [*found, "-o rollout.max_tokens=1024"]


def _apply(settings: Training, option: str) -> Training:
    if option == "--teacher-8bit":
        return replace(settings, teacher_8bit=True)
    name, _, value = option.removeprefix("-o ").partition("=")
    if name == "rollout.max_tokens":
        shorter = min(int(value), settings.rollout.max_tokens)
        tokens = min(settings.micro_batch_tokens, shorter)
        return replace(settings, micro_batch_tokens=tokens, rollout=replace(settings.rollout, max_tokens=shorter))
    return replace(settings, **{name: value})  # type: ignore[arg-type]


def _text(value: int | bool) -> str:
    return str(value).lower()


def told(sizes: Sizes, room: Room) -> str:
    """One line for the user."""
    values = ", ".join(f"{name} {_text(value)}" for name, value in sizes.items())
    return f"fitted to {room.bytes / GIB:.1f} GiB of free {room.device} memory: {values}"


def require_room_to_write(
    name: str, *, eight_bit: bool, wave: int, capacity: int, room: Room, waves: str
) -> str | None:
    """A word where `wave` episodes may grow beyond the room; None where they cannot. `waves` names the setting.

    Raises ConfigError where not even one episode of `capacity` tokens fits beside the model.
    """
    shape: Shape = shape_of(name)

    def parts(slots: int) -> dict[str, float]:
        return memory.of_writing(
            shape, eight_bit=eight_bit, slots=slots, capacity=capacity, accelerated=room.accelerated
        )

    one = parts(1)
    if sum(one.values()) > room.bytes:
        raise ConfigError(
            f"{name} and one episode of {capacity} tokens need {needed(one)}, and {room.bytes / GIB:.1f} GiB of "
            f"{room.device} memory are free for them",
            hint="take a smaller model, or free some memory: `dgpo doctor` tells what is here",
        )
    if sum(parts(wave).values()) <= room.bytes:
        return None
    holds = next(slots for slots in (wave // 2**n for n in range(1, 20)) if slots <= 1 or
                 sum(parts(slots).values()) <= room.bytes)  # fmt: skip
    return (
        f"{wave} episodes of {capacity} tokens each would need {needed(parts(wave))}, {room.bytes / GIB:.1f} GiB are "
        f"free; {waves}{max(1, holds)} is sure to fit"
    )
