"""`--fit`: how much goes through the models at once, tried out on this machine and kept for the rest of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from dgpo_cli.core import schema
from dgpo_cli.core.figures import counted
from dgpo_cli.core.machine import GIB
from dgpo_cli.core.progress import Say
from dgpo_cli.core.records import to_json, write_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.engine.base import Engine, Sampling, SlotId
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.run.fit import Attempt, Memory, SizeSearch, largest_micro_batch

FILE = "fit.json"


@dataclass(frozen=True, slots=True)
class Fit:
    """The largest sizes within a limit, and the attempts that found them."""

    micro_batch_tokens: int
    wave: int | None  # None where nothing is rolled out
    limit_bytes: int
    attempts: list[tuple[str, Attempt]]

    def __str__(self) -> str:
        wave = "" if self.wave is None else f" and {counted(self.wave, 'episode')} at once"
        return (
            f"fit: micro-batches of {self.micro_batch_tokens} tokens{wave} within {self.limit_bytes / GIB:.2f} GiB "
            f"({counted(len(self.attempts), 'size')} looked at)"
        )


_FIT = schema.record(
    {
        "micro_batch_tokens": schema.whole(1),
        "wave": schema.maybe(schema.whole(1)),
        "limit_bytes": schema.whole(0),
        "attempts": schema.list_of(
            schema.tuple_of(schema.text(), schema.tuple_of(schema.whole(1), schema.maybe(schema.whole(0)), schema.FLAG))
        ),
    },
    other=None,
)


def fit(
    run: RunDir,
    learner: Learner,
    *,
    length: int,
    sequences: int,
    limit_gib: float | None,
    engine: Callable[[int], Engine] | None = None,
    say: Say | None = None,
) -> Fit:
    """Set the learner to the size found before an interruption, or else by a search.

    `length` is that of the longest sequence, `sequences` how many a step has at most. `engine` makes a rollout engine
    of so many slots: they get half of the memory that is free, because generation takes most of a step's time and
    their cache stays while the update runs; the micro-batch gets what is left. Either changes results by the order of
    float additions only. Raises ConfigError where not even the smallest fits.
    """
    file = run.path / FILE
    if learner.world.gather(file.is_file())[0]:
        found = _read(run)
    else:
        found = _agreed(learner, _search(learner, length, sequences, limit_gib, engine))
        if learner.world.first:
            write_atomic(file, to_json(asdict(found), indent=1, ensure_ascii=True) + "\n")
    learner.micro_batch_tokens = found.micro_batch_tokens
    if say is not None:
        say(str(found))
    return found


def _search(
    learner: Learner, length: int, sequences: int, limit_gib: float | None, engine: Callable[[int], Engine] | None
) -> Fit:
    memory = Memory(learner.device, 0 if limit_gib is None else int(limit_gib * GIB), learner.world.size)
    attempts: list[tuple[str, Attempt]] = []
    wave, kept = None, None
    if engine is not None:
        half = Memory(learner.device, (memory.used() + memory.limit) // 2)
        search = SizeSearch(half, lambda slots: fill(engine(slots)), sequences)
        wave = search.find("the caches of one episode")
        attempts += [("wave", attempt) for attempt in search.attempts]
        kept = engine(wave)
        fill(kept)  # resident, as it is while a step trains
    tokens, tried = largest_micro_batch(learner, memory, length, sequences)
    del kept
    attempts += [("micro-batch", attempt) for attempt in tried]
    return Fit(tokens, wave, memory.limit, attempts)


def _agreed(learner: Learner, mine: Fit) -> Fit:
    """The size that fits in every process."""
    everyone = learner.world.gather([mine.micro_batch_tokens, mine.wave])
    return replace(
        mine,
        micro_batch_tokens=min(tokens for tokens, _ in everyone),
        wave=None if mine.wave is None else min(wave for _, wave in everyone),
    )


def fill(engine: Engine) -> None:
    """Every slot of a fresh engine read to its end, but for a few tokens that are written in each."""
    rest = [1] * (engine.capacity - 5)
    slots: list[SlotId] = []
    while True:
        try:  # prompts that begin alike would be read once and copied; these fill whole passes
            slots.append(engine.open([len(slots) % 100, *rest], Sampling(temperature=1.0, max_new_tokens=3)))
        except ValueError:  # all slots are open
            break
    while engine.step():
        pass
    for slot in slots:
        engine.close(slot)


def _read(run: RunDir) -> Fit:
    made = schema.read_record(run.path / FILE, _FIT, hint="start again with --fresh")
    return Fit(**made | {"attempts": [(what, Attempt(*attempt)) for what, attempt in made["attempts"]]})
