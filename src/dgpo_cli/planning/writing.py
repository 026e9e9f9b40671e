"""Memory of a model that only generates (evaluation, chat, a teacher that writes trajectories), and how many episodes
fit.

Two lengths of an episode are distinguished. Each open episode is expected to be of the reference length (see `timing`);
the most that it can have is the settings' limit. How many are open follows the first, which one long episode changes
little; a start is refused only where not even one of the second fits beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.device import Precision
from dgpo_cli.core.figures import counted
from dgpo_cli.core.machine import GIB
from dgpo_cli.core.types import Question
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.half import pays_off_for
from dgpo_cli.models.shapes import Shape, shape_of
from dgpo_cli.models.sources import ModelSource
from dgpo_cli.planning.timing import PROMPT_TOKENS, episode_tokens
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.job import Job
from dgpo_cli.training.sizes.jobs import Room, needed

_BYTES_PER_TOKEN = 3  # ours, of questions, rounded down


@dataclass(frozen=True, slots=True)
class Writing:
    """A model and its episodes. Figures are bytes."""

    name: str
    shape: Shape
    eight_bit: bool
    device: str  # cpu, cuda, mps
    half: bool  # loaded in bf16 on a CPU
    capacity: int  # tokens that an episode may have
    usual: int  # tokens of an episode of the reference length
    file: int = 0  # bytes of the weights' files

    @classmethod
    def of(
        cls,
        name: str,
        rollout: RolloutSettings,
        *,
        device: str,
        capacity: int | None = None,
        eight_bit: bool = False,
        precision: Precision = "auto",
        prompt: int = PROMPT_TOKENS,
        file: int = 0,
    ) -> Writing:
        """`capacity` where the model's context is known to be shorter, `prompt` where the questions are known.

        Raises ConfigError where the model's size is not known.
        """
        shape = shape_of(name)
        most = rollout.max_tokens if capacity is None else capacity
        usual = min(most, episode_tokens(rollout, prompt)[0])
        half = not eight_bit and pays_off_for(device, shape.hidden, precision)
        return cls(name, shape, eight_bit, device, half, most, usual, file)

    def parts(self, slots: int, *, longest: bool = False) -> dict[str, float]:
        """Bytes by part while `slots` episodes are open, each of usual length, or each at its `longest`.

        On an accelerator the longest episode decides the length of all rows of the cache, so each counts as such.
        """
        accelerated = self.device == "cuda"
        length = self.capacity if longest or accelerated else self.usual
        job = Job(
            student=self.shape, reader=self.shape, reader_8bit=self.eight_bit, distribution=False, rl=False,
            reference=False, tokens=0, trained=0, chunk=0, slots=slots, capacity=length, checkpointing=False,
            accelerated=accelerated, half=self.half, reader_half=self.half,
        )  # fmt: skip
        parts = {
            "weights": memory.reader_bytes(job),
            "KV cache": memory.kv_cache(job),
            "prefill": memory.prefill(job),
            "logits": memory.drawn(job),
        }
        if accelerated:
            return parts | {"allocator overhead": memory.CUDA_CONTEXT + memory.FRAGMENTATION * sum(parts.values())}
        return parts | {"libraries": memory.LIBRARIES}

    def expected(self, slots: int) -> float:
        """Bytes that the process holds at its highest.

        On a CPU the files of the weights are mapped while they are read. The system takes such pages back where memory
        is short, so that what has to fit is counted without them.
        """
        parts = self.parts(slots)
        read = parts["libraries"] + parts["weights"] + self.file if self.device == "cpu" else 0.0
        return max(sum(parts.values()), read)

    def told(self, slots: int) -> str:
        """One line for the user."""
        most = needed(self.parts(slots, longest=True))
        episodes = f"{slots} episodes" if slots > 1 else "one episode"
        line = f"memory: about {self.expected(slots) / GIB:.2f} GiB for {self.name} and {episodes}"
        if self.device == "cuda":
            return f"{line} of up to {self.capacity} tokens"
        return f"{line} of {self.usual} tokens; {most} if every one has {self.capacity} tokens"


def fitted_wave(
    writing: Writing,
    wave: int,
    room: Room,
    *,
    given: bool,
    setting: str,
    length: str = "-o rollout.max_tokens=",
    say: Callable[[str], None] | None,
) -> int:
    """Number of episodes to keep open at once: `wave`, or fewer, with a warning, where those are not expected to fit.

    `setting` is how the user gives that number, and `length` that of an episode's tokens; one that was `given` is not
    changed. Raises ConfigError where not even one fits at its longest, or what was given does not.
    """
    one = writing.parts(1, longest=True)
    if sum(one.values()) > room.bytes:
        raise ConfigError(
            f"{writing.name} and one episode of {writing.capacity} tokens need {needed(one)}, and "
            f"{room.bytes / GIB:.1f} GiB of {room.device} memory are free for them",
            hint=_smaller(writing, room, length),
        )
    found = next(slots for slots in _halves(wave) if slots == 1 or sum(writing.parts(slots).values()) <= room.bytes)
    if found < wave and given:
        raise ConfigError(
            f"{wave} episodes at once are expected to need {needed(writing.parts(wave))}, and "
            f"{room.bytes / GIB:.1f} GiB of {room.device} memory are free for them",
            hint=f"this fits: {setting}{found}",
        )
    if say is None:
        return found
    if found < wave:
        say(f"fitted to {room.bytes / GIB:.1f} GiB of free {room.device} memory: {counted(found, 'episode')} at once")
    elif sum(writing.parts(found, longest=True).values()) > room.bytes:
        say(f"{writing.told(found)}, and {room.bytes / GIB:.1f} GiB are free ({setting}{max(1, found // 2)} halves it)")
    return found


def _halves(wave: int) -> Sequence[int]:
    return [max(1, wave >> n) for n in range(wave.bit_length())]


def _smaller(writing: Writing, room: Room, length: str) -> str:
    """Shorter episodes that fit, where there are such."""
    for tokens in (2048, 1024):
        if tokens < writing.capacity:
            at_most = Writing(
                writing.name, writing.shape, writing.eight_bit, writing.device, writing.half, tokens, tokens
            )
            if sum(at_most.parts(1).values()) <= room.bytes:
                return f"this fits: {length}{tokens}"
    return "take a smaller model, or free some memory: `dgpo doctor` shows what is here"


def prompt_tokens(questions: Sequence[Question], frame: int) -> int:
    """Tokens of a prompt, rounded up: `frame` tokens around a question of mean length, at least the reference's."""
    size = sum(len(question.text.encode(errors="surrogatepass")) for question in questions) / max(1, len(questions))
    return max(PROMPT_TOKENS, frame + round(size / _BYTES_PER_TOKEN))


def weights_bytes(source: ModelSource) -> int:
    """Of the files with a local model's weights; 0 for one of the hub, which is stored as it is computed with."""
    if not source.local:
        return 0
    return sum(file.stat().st_size for file in Path(source.location).glob("*.safetensors"))
