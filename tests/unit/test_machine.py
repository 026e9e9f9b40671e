"""What counts as free memory: of the machine, or of the container where that is less."""

from pathlib import Path

import pytest

from dgpo_cli.core import machine
from dgpo_cli.core.machine import free_main
from dgpo_cli.core.out_of_memory import is_out_of_memory

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    2048 kB\n"}


def test_it_is_what_the_system_calls_available(tmp_path):
    write(tmp_path, MACHINE)
    assert free_main(tmp_path) == 2 * MIB
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "99999999"})
    assert free_main(tmp_path) == 2 * MIB


def test_a_container_has_what_its_limit_leaves_and_files_can_be_dropped(tmp_path):
    write(tmp_path, MACHINE | {"sys/fs/cgroup/memory.max": "3000000", "sys/fs/cgroup/memory.current": "2500000"})
    assert free_main(tmp_path) == 500_000
    write(tmp_path, {"sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 200000\n"})
    assert free_main(tmp_path) == 700_000
    write(tmp_path, {"sys/fs/cgroup/memory.current": "9000000"})
    assert free_main(tmp_path) == 0


def test_a_container_has_as_much_memory_as_its_limit(tmp_path):
    write(tmp_path, {"sys/fs/cgroup/memory.max": "500000000\n"})
    assert machine.main_memory(tmp_path) == 500_000_000
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert machine.main_memory(tmp_path) == machine.main_memory(tmp_path / "none") > 500_000_000


def test_version_1_of_control_groups(tmp_path):
    old = "sys/fs/cgroup/memory/memory"
    write(tmp_path, MACHINE | {f"{old}.limit_in_bytes": "1000000", f"{old}.usage_in_bytes": "600000"})
    assert free_main(tmp_path) == 400_000
    assert machine.main_memory(tmp_path) == 1_000_000
    write(tmp_path, {f"{old}.stat": "total_inactive_file 100000\ninactive_file 1\n"})
    assert free_main(tmp_path) == 500_000


def test_a_machine_without_a_gpu_is_known_without_torch(monkeypatch):
    monkeypatch.setattr(machine, "may_have_gpu", lambda: False)
    monkeypatch.setattr(machine, "free_main", lambda: 7)
    assert machine.free_on("auto") == machine.free_on("cpu") == ("cpu", 7)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_way_to_run_out_of_memory_is_known(error):
    assert is_out_of_memory(error)
    outer = ValueError("x")
    outer.__cause__ = error
    assert is_out_of_memory(outer)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_the_group_that_a_process_is_in_counts_and_those_above_it(tmp_path):
    """`systemd-run -p MemoryMax=` and a shared machine's slices limit a process that sees the whole tree."""
    write(tmp_path, MACHINE | {"proc/self/cgroup": "0::/user.slice/run.scope\n"})
    assert free_main(tmp_path) == 2 * MIB
    above = "sys/fs/cgroup/user.slice/memory"
    write(tmp_path, {f"{above}.max": "900000\n", f"{above}.current": "100000\n"})
    assert free_main(tmp_path) == 800_000 and machine.main_memory(tmp_path) == 900_000
    own = "sys/fs/cgroup/user.slice/run.scope/memory"
    write(tmp_path, {f"{own}.max": "max\n", f"{own}.high": "500000\n", f"{own}.current": "50000\n"})
    assert free_main(tmp_path) == 450_000 and machine.main_memory(tmp_path) == 500_000


def test_the_group_of_version_1(tmp_path):
    write(tmp_path, MACHINE | {"proc/self/cgroup": "4:cpu,memory:/docker/abc\n1:name=systemd:/x\nno group\n"})
    own = "sys/fs/cgroup/memory/docker/abc/memory"
    write(tmp_path, {f"{own}.limit_in_bytes": "700000", f"{own}.usage_in_bytes": "100000"})
    assert free_main(tmp_path) == 600_000


def test_swap_is_no_room(tmp_path):
    write(tmp_path, {"proc/meminfo": MACHINE["proc/meminfo"] + "SwapTotal: 9999999 kB\nSwapFree: 9999999 kB\n"})
    assert free_main(tmp_path) == 2 * MIB
