"""The resources of this machine, and the tasks that will and will not work on it.

The memory of a task is counted as by `dgpo plan` and the start of a run, with the sizes that would be fitted, and
compared with the memory that is free now.
"""

from __future__ import annotations

import logging
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core import hub
from dgpo_cli.core.figures import counted
from dgpo_cli.core.machine import GIB, free_main, main_memory, num_cores
from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError, first_line
from dgpo_cli.models.aliases import ALIASES
from dgpo_cli.models.hub import is_cached
from dgpo_cli.planning.writing import Writing, fitted_wave
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.jobs import Account, Room, Sizes, Training, as_options, training_job, with_sizes

Status = Literal["ok", "note", "problem"]

_INSTALL = "run `make venv`, or `pip install -e .`"
QUICKSTART_GB = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a task works on this machine, and why or why not."""

    task: str
    works: bool
    why: str


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    memory_gb: float  # of the accelerator, or the machine's where there is none
    accelerated: bool
    free_gb: float | None = None  # of it; all by default
    shares_memory: bool = False  # with the processor, as Apple's do: counted as a start counts it

    @property
    def room(self) -> Room:
        free = self.memory_gb if self.free_gb is None else self.free_gb
        kind = "cpu" if not self.accelerated else "mps" if self.shares_memory else "cuda"
        return Room(kind, int(free * 1e9))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    checks: list[Check]
    verdicts: list[Verdict]

    @property
    def healthy(self) -> bool:
        return all(check.status != "problem" for check in self.checks)


def diagnose(folder: Path, *, progress: Progress | None = None) -> Diagnosis:
    """Probe the machine. `folder` is where runs would be written."""
    total = main_memory() / 1e9
    free = min(total, free_main() / 1e9)
    device = find_device(total, free)
    probes: list[Callable[[], Check]] = [
        lambda: Check("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        lambda: Check("processor", "ok", f"{counted(num_cores(), 'core')}, {platform.machine()}"),
        lambda: check_memory(total, free),
        lambda: Check("device", "ok" if device.accelerated else "note", describe_device(device)),
        lambda: check_disk(folder),
        check_packages,
        lambda: check_eight_bit(device),
        check_hub,
    ]
    checks: list[Check] = []
    for done, probe in enumerate(probes, start=1):
        checks.append(probe())
        if progress is not None:
            progress(done, len(probes))
    return Diagnosis(checks, judge(device, {check.name: check for check in checks}))


def check_memory(memory: float, free: float) -> Check:
    """Both in GB; told in GiB, as what fits into it is."""
    found = f"{_gib(free):.1f} of {_gib(memory):.1f} GiB are free"
    if free >= QUICKSTART_GB:
        return Check("memory", "ok", found)
    needed = f"the quickstart needs about {_gib(QUICKSTART_GB):.1f} GiB: close other programs"
    return Check("memory", "problem", found, needed)


def _gib(gigabytes: float) -> float:
    return gigabytes * 1e9 / GIB


def find_device(memory: float, free: float) -> Device:
    """The device that training takes by default."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        free = torch.cuda.mem_get_info(0)[0] / 1e9
        return Device(properties.name, properties.total_memory / 1e9, accelerated=True, free_gb=free)
    if torch.backends.mps.is_available():
        return Device("Apple GPU (mps)", memory, accelerated=True, free_gb=free, shares_memory=True)
    return Device("CPU", memory, accelerated=False, free_gb=free)


def describe_device(device: Device) -> str:
    import torch

    if not device.accelerated:
        return f"CPU only, {counted(torch.get_num_threads(), 'thread')} (torch {torch.__version__})"
    return f"{device.name}, {_gib(device.memory_gb):.0f} GiB (torch {torch.__version__})"


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free in {folder.resolve()}"
    if free >= 1:
        return Check("disk", "ok", found)
    return Check("disk", "problem", found, "the quickstart needs about 1 GB: free some, `dgpo runs --prune` helps")


def check_packages() -> Check:
    """Check that every requirement of this package is installed in an accepted version."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("dgpo-cli") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", "problem", "dgpo-cli itself is not installed", _INSTALL)
    found, missing = [], []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(str(requirement))
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement} (is {version})")
    if missing:
        return Check("packages", "problem", f"missing: {', '.join(missing)}", _INSTALL)
    return Check("packages", "ok", ", ".join(found))


def check_eight_bit(device: Device) -> Check:
    """One matrix product through bitsandbytes on the device that would hold the teacher."""
    import torch

    where = "cuda" if device.accelerated and torch.cuda.is_available() else "cpu"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that are not needed here
    try:
        from bitsandbytes.nn.modules import Linear8bitLt

        layer: torch.nn.Module = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        layer.to(where)(torch.ones(1, 64, device=where, dtype=torch.bfloat16))
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = first_line(error)
        return Check("8-bit", "note", f"bitsandbytes does not run on {where}: {reason}", "leave --teacher-8bit out")
    return Check("8-bit", "ok", f"bitsandbytes runs on {where}")


def check_hub() -> Check:
    """Whether models and data sets can be downloaded."""
    from huggingface_hub import constants, get_token

    if problem := hub.unreachable():
        return Check("hub", "note", problem, "only cached and local models work")
    login = "logged in" if get_token() else "not logged in (gated models need `hf auth login`)"
    return Check("hub", "ok", f"{constants.ENDPOINT} answers, {login}")


def judge(device: Device, checks: dict[str, Check]) -> list[Verdict]:
    """Verdicts on tasks, from the smallest to the paper's."""
    sound = checks["packages"].status == "ok"
    possible = sound and checks["memory"].status == checks["disk"].status == "ok"
    online = checks["hub"].status == "ok"
    first = Verdict("dgpo quickstart", possible, "offline, minutes on two cores" if possible else "see above")
    return [first, *(_judge(device, *task, sound=sound, online=online) for task in _tasks())]


Counted = Callable[[Room], tuple[dict[str, float], Sizes]]  # bytes by part, and the sizes that were fitted


def _tasks() -> list[tuple[str, tuple[str, ...], Counted]]:
    """(what, its models, how it is counted) for a model of a laptop and for the paper's student and teacher."""
    small, student, teacher = "smollm2-135m", "qwen-0.5b", "qwen-3b"
    kd = KDSettings(student=student, teacher=teacher, trajectories="")
    rl = RLSettings(student=student, teacher=teacher, index="", questions="")
    return [
        (f"dgpo eval, dgpo chat with {small}", (small,), partial(_asked, small)),
        (f"dgpo kd --method seqkd, {small}", (small,), partial(_trained, replace(kd, student=small, method="seqkd"))),
        (f"dgpo eval, dgpo chat with {student}", (student,), partial(_asked, student)),
        (f"dgpo kd, {student} from {teacher}", (student, teacher), partial(_trained, kd)),
        ("dgpo rl --teacher-8bit", (student, teacher), partial(_trained, replace(rl, teacher_8bit=True))),
        ("dgpo rl", (student, teacher), partial(_trained, rl)),
    ]


def _asked(name: str, room: Room) -> tuple[dict[str, float], Sizes]:
    """The memory of a wave of episodes of usual length, or of as many as fit. Raises ConfigError if none fits."""
    rollout = RolloutSettings()
    writing = Writing.of(name, rollout, device=room.device)
    wave = fitted_wave(writing, rollout.wave, room, given=False, setting="", say=None)
    return writing.parts(wave), {} if wave == rollout.wave else {"rollout.wave": wave}


def _trained(settings: Training, room: Room) -> tuple[dict[str, float], Sizes]:
    """Raises ConfigError where no size fits."""

    def parts(tried: Training) -> dict[str, float]:
        return memory.in_process(training_job(tried, student=settings.student, device=room.device))

    sizes = Account(parts, lambda tried: tried.rollout.max_tokens, room).fitted(settings)
    return parts(with_sizes(settings, sizes)), sizes


def _judge(
    device: Device, task: str, models: tuple[str, ...], counted: Counted, *, sound: bool, online: bool
) -> Verdict:
    away = [name for name in models if not online and not _is_here(name)]
    room = device.room
    try:
        parts, sizes = counted(room)
    except ConfigError as error:
        return Verdict(task, False, error.message.removeprefix("this run "))
    need = sum(parts.values())
    size = f"needs about {need / GIB:.1f} GiB, {room.bytes / GIB:.1f} GiB are free"
    if need > room.bytes:
        return Verdict(task, False, size)
    if away:
        return Verdict(task, False, f"{' and '.join(away)} neither cached nor to be reached")
    slow = "" if device.accelerated else "; slow without a GPU"
    return Verdict(task, sound, size + (f", fitted: {as_options(sizes)}" if sizes else "") + slow)


def _is_here(name: str) -> bool:
    alias = ALIASES[name]
    packaged = alias.package is not None and find_spec(alias.package) is not None
    return packaged or is_cached(alias.repo)
