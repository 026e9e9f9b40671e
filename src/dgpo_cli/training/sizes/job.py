"""What a training stage holds in memory: the models that it has, and how much of its data at once."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.models.shapes import Shape

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True, slots=True)
class Job:
    """Memory contents of a training stage. `reader` is a frozen teacher, `reference` a frozen copy of
    the student.
    """

    student: Shape
    reader: Shape | None
    reader_8bit: bool
    distribution: bool  # the loss compares whole distributions with the reader's
    rl: bool  # advantages and rollouts, and a critic where the method has one
    reference: bool
    tokens: int  # M
    trained: int  # N
    chunk: int  # n
    slots: int  # episodes that run together; 0 without rollouts
    capacity: int  # tokens of one episode
    checkpointing: bool
    accelerated: bool  # CUDA: bf16 linear maps over float32 weights, frozen models in bf16, captured graphs
    half: bool = False  # the same of the student's linear maps on a CPU whose processor has bf16
    reader_half: bool = False  # and of the teacher there
    critic: bool = True  # of the methods of rl those that learn values have one
    shared_critic: bool = False  # a head on the student's hidden states instead of a model
    adam_8bit: bool = False
    adapter: int = 0  # values of an adapter that is trained instead of the student, and of the critic; 0 without one
    frozen_embeddings: bool = False  # of both, and the output layer
    reader_writes: bool = False  # episodes of its own, or with `blended` every token of the student's together with it
    blended: bool = False

    @property
    def frozen(self) -> bool:
        """Whether embeddings and output layers are not trained."""
        return self.frozen_embeddings or bool(self.adapter)

    @property
    def own_critic(self) -> bool:
        return self.rl and self.critic and not self.shared_critic

    @property
    def critic_head(self) -> int:
        """Values of the layer that tells a value from a hidden state; 0 without a critic."""
        return self.student.hidden + 1 if self.rl and self.critic else 0

    @property
    def compute(self) -> int:
        """Bytes of what the student's linear maps read."""
        return HALF if self.accelerated or self.half else FLOAT

    @property
    def writers(self) -> list[tuple[Shape, int]]:
        """Shape, and bytes of an entry of the cache, of each model that writes."""
        of_reader = [] if self.reader is None or not self.reader_writes else [(self.reader, self.reader_compute)]
        return [(self.student, self.compute), *of_reader]

    @property
    def reader_compute(self) -> int:
        """Dtype in which the teacher computes; around 8-bit weights a CPU uses float32."""
        return HALF if self.accelerated or (self.reader_half and not self.reader_8bit) else FLOAT
