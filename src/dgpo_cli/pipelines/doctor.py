"""What this machine has, and what will and will not work on it.

The memory figures are estimates from parameter counts: 16 bytes a parameter for a model that is trained (weights,
gradient and Adam's two moments in float32), 2 for one that is read in bf16, 1 in 8 bit, and a fixed allowance for
activations and the caches of running episodes.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from dgpo_cli.core import hub
from dgpo_cli.core.progress import Progress
from dgpo_cli.models.aliases import ALIASES

Status = Literal["ok", "note", "problem"]

TRAINED_BYTES, READ_BYTES, EIGHT_BIT_BYTES = 16, 2, 1  # per parameter
WORKING_GB = 6.0  # activations, caches and one chunk of logits at the default sizes
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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    checks: list[Check]
    verdicts: list[Verdict]

    @property
    def healthy(self) -> bool:
        return all(check.status != "problem" for check in self.checks)


def diagnose(folder: Path, *, progress: Progress | None = None) -> Diagnosis:
    """Probe the machine. `folder` is where runs would be written."""
    memory = memory_gb()
    device = find_device(memory)
    probes: list[Callable[[], Check]] = [
        lambda: Check("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        lambda: Check("processor", "ok", f"{num_cores()} cores, {platform.machine()}"),
        lambda: check_memory(memory),
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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Memory of the machine, or of the container where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limit_file.read_text().strip() if limit_file.is_file() else "max"
    return min(total, int(limit) if limit.isdigit() else total) / 1e9


def check_memory(memory: float) -> Check:
    if memory >= QUICKSTART_GB:
        return Check("memory", "ok", f"{memory:.1f} GB")
    return Check("memory", "problem", f"{memory:.1f} GB", f"the quickstart needs about {QUICKSTART_GB:.0f} GB")


def find_device(memory: float) -> Device:
    """The device that training takes by default."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory / 1e9, accelerated=True)
    if torch.backends.mps.is_available():
        return Device("Apple GPU (mps)", memory, accelerated=True)
    return Device("CPU", memory, accelerated=False)


def describe_device(device: Device) -> str:
    import torch

    if not device.accelerated:
        return f"CPU only, {torch.get_num_threads()} threads (torch {torch.__version__})"
    return f"{device.name}, {device.memory_gb:.0f} GB (torch {torch.__version__})"


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free in {folder.resolve()}"
    if free >= 1:
        return Check("disk", "ok", found)
    return Check("disk", "problem", found, "the quickstart needs about 1 GB: free some, `dgpo runs --prune` helps")


def check_packages() -> Check:
    """Every requirement of this package is installed in a version that it accepts."""
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
    try:
        from bitsandbytes.nn.modules import Linear8bitLt

        layer: torch.nn.Module = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        layer.to(where)(torch.ones(1, 64, device=where, dtype=torch.bfloat16))
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
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
    """What can be done here, from the smallest task to the paper's."""
    sound = checks["packages"].status == "ok"
    room = checks["memory"].status == checks["disk"].status == "ok"
    offline = "" if checks["hub"].status == "ok" else "; models must be cached or local, the hub is not reachable"
    possible = sound and room
    first = Verdict("dgpo quickstart", possible, "offline, minutes on two cores" if possible else "see above")
    return [first, *(_judge_training(device, *task, sound=sound, note=offline) for task in _tasks())]


def _tasks() -> list[tuple[str, float]]:
    """(what, GB that it needs) for the paper's student and teacher."""
    student, teacher = ALIASES["qwen-0.5b"].parameters, ALIASES["qwen-3b"].parameters
    return [
        ("dgpo eval, dgpo chat with qwen-0.5b", student * READ_BYTES + 1),
        ("dgpo kd, qwen-0.5b from qwen-3b", student * TRAINED_BYTES + teacher * READ_BYTES + WORKING_GB),
        ("dgpo rl --teacher-8bit", 2 * student * TRAINED_BYTES + teacher * EIGHT_BIT_BYTES + WORKING_GB),
        ("dgpo rl", 2 * student * TRAINED_BYTES + teacher * READ_BYTES + WORKING_GB),
    ]


def _judge_training(device: Device, task: str, needed_gb: float, *, sound: bool, note: str) -> Verdict:
    size = f"needs about {needed_gb:.0f} GB, {device.memory_gb:.0f} GB are here"
    if needed_gb > device.memory_gb:
        return Verdict(task, False, size)
    slow = "" if device.accelerated else "; very slow without a GPU"
    return Verdict(task, sound, f"{size}{slow}{note}")
