"""Cores and memory of the machine that this process may use, and how much of the memory is free.

Free main memory is what the system calls available, or what is left of a container's limit where that is less. Swap is
not counted: a step that works in swap does not finish.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath

GIB = 2**30
MARGIN = 0.1  # ours, share of the free memory: other programs need some, and allocators hold more than is in use
# Limit and use of a control group; beyond memory.high the system slows a process down until it stands still.
_NEW_FILES = (("memory.max", "memory.current"), ("memory.high", "memory.current"))
_OLD_FILES = (("memory.limit_in_bytes", "memory.usage_in_bytes"),)
# Written by every NVIDIA driver: where they are missing nothing has to import torch to know that there is no GPU.
_GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))


def num_cores() -> int:
    """Number of cores that this process may run on, or that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main_memory(root: Path = Path("/")) -> int:
    """Bytes of the machine's memory, or of the container's where that is less; `root` is where /sys is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, _, _ in _groups(root):
        with suppress(OSError, ValueError):  # a limit of "max" is none
            total = min(total, int(limit.read_text()))
    return total


def free_main(root: Path = Path("/")) -> int:
    """Bytes of main memory; `root` is where /proc and /sys are. Half of all memory where the system does not say."""
    free: int | None = None
    with suppress(OSError, StopIteration, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, used, cache in _groups(root):
        with suppress(OSError, ValueError):  # a limit of "max" is none
            left = int(limit.read_text()) - int(used.read_text()) + _reclaimable(cache)
            free = min(free, left)
    return max(0, free)


def _groups(root: Path) -> list[tuple[Path, Path, Path]]:
    """Files of limit, use and its parts of this process's control groups, of version 2 and 1, and of those above them.

    In a container the group is the root that it sees; elsewhere /proc/self/cgroup says where the process is.
    """
    new, old = (root / "sys/fs/cgroup", ["/"]), (root / "sys/fs/cgroup/memory", ["/"])
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, kinds, place = line.split(":", 2)
            if number == "0" and not kinds:
                new[1].append(place)
            elif "memory" in kinds.split(","):
                old[1].append(place)
    found = []
    for (top, places), names in ((new, _NEW_FILES), (old, _OLD_FILES)):
        own = [PurePosixPath(place) for place in places if ".." not in place]
        for group in dict.fromkeys(above for lowest in own for above in (lowest, *lowest.parents)):
            folder = top / str(group).lstrip("/")
            found += [(folder / limit, folder / used, folder / "memory.stat") for limit, used in names]
    return found


def _reclaimable(stat: Path) -> int:
    """Bytes of cached files that the group counts as used and can reclaim."""
    with suppress(OSError, ValueError, KeyError):
        rows = dict(line.split() for line in stat.read_text().splitlines())
        return int(rows.get("total_inactive_file") or rows["inactive_file"])
    return 0


def may_have_gpu() -> bool:
    return sys.platform == "darwin" or any(path.exists() for path in _GPU_FILES)


def free_on(device: str) -> tuple[str, int]:
    """Kind of a device, "auto" being what training takes, and its free bytes. Raises ConfigError as a run would."""
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "cpu", free_main()
    import torch

    from dgpo_cli.core.device import named_device

    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if found is None else str(found)
    chosen = named_device(device)
    if chosen.type == "cuda":
        return "cuda", int(torch.cuda.mem_get_info(chosen)[0])
    return chosen.type, free_main()
