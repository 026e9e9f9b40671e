"""What a figure was measured on: the device, versions and commit; the bandwidth and arithmetic that it really has."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from roofline import Machine

REPETITIONS = 7


def about(device: torch.device) -> dict[str, Any]:
    """For the JSON of every row."""
    found = {name: _version(name) for name in ("torch", "transformers", "trl", "liger-kernel", "vllm", "bitsandbytes")}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name, version in found.items() if version},
        "commit": _commit(),
    }


def measured(device: torch.device, dtype: torch.dtype) -> Machine:
    """Bytes a second of a large copy (read and written), and operations a second of a large matrix product."""
    gpu = device.type == "cuda"
    source = torch.ones(2**30 if gpu else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _seconds(lambda: target.copy_(source), device)
    moved = 2 * source.numel()
    n = 8_192 if gpu else 1_024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    multiplying = _seconds(lambda: a @ b, device)
    return Machine(bandwidth=moved / copying, flops=2 * n**3 / multiplying)


def use_way(text: str) -> None:
    """Set a switch of models/ways.py, NAME=VALUE with an integer or true, false."""
    from dgpo_cli.models.ways import WAYS

    name, _, value = text.partition("=")
    setattr(WAYS, name, type(getattr(WAYS, name))(json.loads(value)))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """The highest memory since it was made: allocated and reserved bytes on CUDA, resident ones on the CPU (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> dict[str, int]:
        if self.device.type == "cuda":
            return {
                "allocated": torch.cuda.max_memory_allocated(self.device),
                "reserved": torch.cuda.max_memory_reserved(self.device),
            }
        lines = Path("/proc/self/status").read_text().splitlines()
        return {"resident": 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(REPETITIONS + 2):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "cpu"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def _commit() -> str:
    try:
        ended = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"
