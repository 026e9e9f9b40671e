"""A run folder at work, and who listens to it: what every part of a training run may need."""

from __future__ import annotations

from dataclasses import dataclass, field

from dgpo_cli.core.progress import Say, Steps
from dgpo_cli.core.run_dir import RunDir


@dataclass(frozen=True, slots=True)
class OpenRun:
    """`warn`, `say` and `show` get lines for the user; None where nobody listens."""

    folder: RunDir
    keep: int = 1  # saved states
    progress: Steps = field(default_factory=lambda: Steps(None))
    warn: Say | None = None
    say: Say | None = None  # what the user may want to know
    show: Say | None = None  # gets one of the student's episodes now and then
