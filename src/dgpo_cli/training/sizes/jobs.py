"""Settings as memory: what a training stage keeps, and which sizes make it fit. `plan` and every start count by this.

Sizes that are fitted decide how much goes through the models at once, never what a step computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from dgpo_cli.core import schema
from dgpo_cli.core.machine import GIB, MARGIN, free_on
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.half import pays_off_for
from dgpo_cli.models.shapes import shape_of
from dgpo_cli.objectives.base import Need
from dgpo_cli.objectives.registry import create
from dgpo_cli.training.settings import RLSettings, TrainSettings
from dgpo_cli.training.sizes.job import Job
from dgpo_cli.training.sizes.memory import adapter_values

FILE = "sizes.json"  # of a run folder
_LEAST_CHUNK, _LEAST_WAVE = 32, 8

Training = TypeVar("Training", bound=TrainSettings)
Sizes = dict[str, int | bool]


@dataclass(frozen=True, slots=True)
class Room:
    """A device: its kind, and the bytes of it that a run may use."""

    device: str  # cpu, cuda, mps
    bytes: int

    @property
    def accelerated(self) -> bool:
        return self.device == "cuda"

    @classmethod
    def on(cls, device: str, limit_gib: float | None = None, sharers: int = 1) -> Room:
        """The free memory less a margin, or the limit that was set. Raises ConfigError for an unusable device."""
        kind, free = free_on(device)
        room = int(free * (1 - MARGIN)) if limit_gib is None else int(limit_gib * GIB)
        return cls(kind, room // (sharers if kind == "cpu" else 1))


def training_job(settings: TrainSettings, *, student: str, device: str, longest: int | None = None) -> Job:
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
    shape, rank = shape_of(student), settings.lora.rank
    reader = shape_of(settings.teacher) if reads and settings.teacher is not None else None
    return Job(
        student=shape,
        reader=reader,
        reader_8bit=settings.teacher_8bit,
        distribution=Need.TEACHER_DISTRIBUTION in objective.needs,
        rl=rl,
        reference=Need.REFERENCE_LOGPROBS in objective.needs,
        tokens=tokens,
        trained=tokens,
        chunk=settings.chunk_tokens,
        slots=open_at_once(settings) if writes or (not rl and settings.index is not None) else 0,
        capacity=rollout.max_tokens,
        checkpointing=settings.gradient_checkpointing,
        accelerated=device == "cuda",
        half=pays_off_for(device, shape.hidden, settings.precision),
        reader_half=reader is not None and pays_off_for(device, reader.hidden, settings.precision),
        critic=Need.VALUES in objective.needs,
        shared_critic=isinstance(settings, RLSettings) and settings.critic == "shared",
        adam_8bit=settings.optimizer == "adamw-8bit",
        adapter=0 if rank is None else adapter_values(shape, rank, settings.lora.maps),
        frozen_embeddings=settings.freeze_embeddings,
        reader_writes=objective.teacher_writes or bool(objective.sampled_from_teacher),
        blended=bool(objective.sampled_from_teacher),
    )


def tokens_at_once(settings: TrainSettings, longest: int) -> int:
    """Tokens of the largest micro-batch: a step has no more, and one sequence is never cut."""
    return max(longest, min(settings.micro_batch_tokens, _sequences(settings) * longest))


def open_at_once(settings: TrainSettings) -> int:
    """Episodes: those of a wave, where a step or an evaluation has as many."""
    return min(settings.rollout.wave, max(_sequences(settings), settings.eval_limit))


def _sequences(settings: TrainSettings) -> int:
    """Of a step."""
    samples = 1
    if isinstance(settings, RLSettings):
        samples = settings.samples or create(settings.method, settings.objective).default_samples
    return settings.batch_size * samples


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


def current(settings: TrainSettings) -> Sizes:
    return {
        "micro_batch_tokens": settings.micro_batch_tokens,
        "rollout.wave": settings.rollout.wave,
        "chunk_tokens": settings.chunk_tokens,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def halved(settings: TrainSettings) -> Sizes:
    """Half of everything that goes through the models at once, with activations computed again."""
    now = {name: max(1, value // 2) for name, value in current(settings).items()}
    return now | {"gradient_checkpointing": True}


def as_options(sizes: Sizes) -> str:
    return " ".join(f"-o {name}={_text(value)}" for name, value in sizes.items())


def _advice(options: Sequence[str], sizes: Sizes) -> str:
    named = [*options, *(as_options({name: value}) for name, value in sizes.items())]
    return f"{'these' if len(named) > 1 else 'this'} would fit: {' '.join(named)}"


def needed(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()) / GIB:.1f} GiB"


@dataclass(frozen=True, slots=True)
class Account(Generic[Training]):
    """The memory that settings take, and the room for it. `given` settings, named by the user, are never fitted."""

    parts: Callable[[Training], dict[str, float]]  # bytes
    longest: Callable[[Training], int]  # tokens of a sequence
    room: Room
    given: Collection[str] = ()

    def need(self, settings: Training) -> float:
        return sum(self.parts(settings).values())

    def fits(self, settings: Training) -> bool:
        return self.need(settings) <= self.room.bytes

    def fitted(self, settings: Training) -> Sizes:
        """Sizes, of those that were not given, with which `settings` fit; none where they do already.

        Halves what is largest, in the order in which it costs least time. Raises ConfigError where that is not enough.
        """
        sizes, now = self._reduced(settings)
        if not self.fits(now):
            raise ConfigError(*self._refusal(settings, now))
        return sizes

    def _reduced(self, settings: Training) -> tuple[Sizes, Training]:
        """Sizes, and the settings with them, that fit or can be made no smaller."""
        sizes: Sizes = {}
        now = settings
        while not self.fits(now):
            before = self.need(now)
            steps = [step for step in _smaller(now, self.longest(now)) if step[0] not in self.given]
            tried = [(name, value, with_sizes(now, {name: value})) for name, value in steps]
            saving = [step for share in (0.99, 1.0) for step in tried if self.need(step[2]) < share * before]
            if not saving:
                break
            name, value, now = saving[0]
            sizes[name] = value
        return sizes, now

    def _refusal(self, settings: Training, smallest: Training) -> tuple[str, str]:
        """Message and hint: the settings that would fit, those that change what is computed last."""
        asked = self.parts(smallest)
        largest, size = max(asked.items(), key=lambda item: item[1])
        message = (
            f"this run needs {needed(asked)} and {self.room.bytes / GIB:.1f} GiB of {self.room.device} memory are free "
            f"for it; the largest part is {largest} with {size / GIB:.1f} GiB"
        )
        freed = [name for name in self.given if name in _FITTED]
        free = replace(self, given=set(self.given) - set(freed))
        found, now = free._reduced(settings)
        if freed and self.fits(now):
            return message, _advice([], found)
        taken: list[str] = []
        for option in _otherwise(now):
            tried = _apply(now, option)
            if self.need(tried) < self.need(now):
                taken.append(option)
                further, now = free._reduced(tried)  # what saved nothing before may save now
                found |= further
            if self.fits(now):
                return message, self._named(settings, found, taken)
        return message, "take smaller models, or a machine with more memory: `dgpo doctor` shows what works here"

    def _named(self, settings: Training, sizes: Sizes, options: Sequence[str]) -> str:
        """The fewest of `options` that are enough, and of `sizes` those that stand in the place of what was given."""
        enough: list[str] = list(options)
        own: Sizes = {name: value for name, value in sizes.items() if name in self.given}
        for option in options:
            rest: list[str] = [other for other in enough if other != option]
            if rest and self._would_fit(settings, own, rest):
                enough = rest
        return _advice(enough, own)

    def _would_fit(self, settings: Training, sizes: Sizes, options: Sequence[str]) -> bool:
        tried = with_sizes(settings, sizes)
        for option in options:
            tried = _apply(tried, option)
        return self.fits(self._reduced(tried)[1])


def _smaller(settings: TrainSettings, longest: int) -> list[tuple[str, int | bool]]:
    """Next smaller values by setting, in the order in which they are tried."""
    steps: list[tuple[str, int | bool]] = []
    tokens, wave = tokens_at_once(settings, longest), open_at_once(settings)
    if tokens > longest:
        steps.append(("micro_batch_tokens", max(longest, tokens // 2)))
    if wave > _LEAST_WAVE:
        steps.append(("rollout.wave", max(_LEAST_WAVE, wave // 2)))
    if not settings.gradient_checkpointing:
        steps.append(("gradient_checkpointing", True))
    if settings.chunk_tokens > _LEAST_CHUNK:
        steps.append(("chunk_tokens", max(_LEAST_CHUNK, settings.chunk_tokens // 2)))
    if wave > 1:
        steps.append(("rollout.wave", wave // 2))
    return steps


_FITTED = ("micro_batch_tokens", "rollout.wave", "gradient_checkpointing", "chunk_tokens")
_SIZES = schema.record(
    {}, dict.fromkeys(_FITTED, schema.whole(1)) | {"gradient_checkpointing": schema.FLAG}, other=None
)


def _otherwise(settings: TrainSettings) -> list[str]:
    """Settings that take less and change what is computed, so that only the user may set them."""
    found: list[str] = []
    if settings.optimizer == "adamw":
        found.append("-o optimizer=adamw-8bit")
    if not settings.teacher_8bit:
        found.append("--teacher-8bit")
    if isinstance(settings, RLSettings) and settings.critic == "own":
        found.append("-o critic=shared")
    shorter = [tokens for tokens in (2048, 1024) if tokens < settings.rollout.max_tokens]
    adapter = settings.lora.rank is None and not settings.freeze_embeddings
    return [
        *found,
        *(f"-o rollout.max_tokens={tokens}" for tokens in shorter),
        *(["-o lora.rank=16"] if adapter else []),
    ]


def _apply(settings: Training, option: str) -> Training:
    if option == "--teacher-8bit":
        return replace(settings, teacher_8bit=True)
    name, _, value = option.removeprefix("-o ").partition("=")
    if name == "lora.rank":
        return replace(settings, lora=replace(settings.lora, rank=int(value)))
    if name == "rollout.max_tokens":
        return replace(settings, rollout=replace(settings.rollout, max_tokens=int(value)))
    return replace(settings, **{name: value})  # type: ignore[arg-type]


def _text(value: int | bool) -> str:
    return str(value).lower()


def told(sizes: Sizes, room: Room) -> str:
    """One line for the user."""
    values = ", ".join(f"{name} {_text(value)}" for name, value in sizes.items())
    return f"fitted to {room.bytes / GIB:.1f} GiB of free {room.device} memory: {values}"
