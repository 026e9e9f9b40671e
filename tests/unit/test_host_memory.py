"""What is freed goes back to the system, and few compiled kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.unit.test_degenerate_steps import Fixed
from tests.unit.test_train_step import learner, trajectories

from dgpo_cli.commands.common.few_kernels import keep_few_kernels
from dgpo_cli.core.machine import GIB
from dgpo_cli.models.half import processor_has_bf16
from dgpo_cli.training.loop import Plan, run_step

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc")

_RESIDENT = """
import sys, torch
from pathlib import Path
from dgpo_cli.commands.common.few_kernels import keep_few_kernels
from dgpo_cli.core.host_memory import give_back

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
"""


def run(program: str) -> list[int]:
    variable = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # another test's command may have set it
    environment = {name: value for name, value in os.environ.items() if name != variable}
    ended = subprocess.run(
        [sys.executable, "-c", _RESIDENT + program], capture_output=True, text=True, check=True, env=environment
    )
    return [int(word) for word in ended.stdout.split()]


@linux
def test_what_is_freed_between_kept_blocks_is_given_back() -> None:
    held, freed, given = run("""
torch.ones(8_000_000)  # after a block of 32 MB was freed, glibc takes those below it from its heap
blocks = [(torch.ones(1_000_000), torch.ones(100)) for _ in range(100)]
print(resident())
blocks = [small for _, small in blocks]
print(resident())
give_back()
print(resident())
""")
    assert held - freed < 0.1 * GIB  # else this shows nothing
    assert freed - given > 0.3 * GIB


@linux
@pytest.mark.skipif(not processor_has_bf16(), reason="oneDNN compiles no kernels of bf16 here")
def test_kernels_of_shapes_that_do_not_come_again_are_dropped() -> None:
    program = """
keep_few_kernels()
maps = [torch.nn.Linear(64, 32 * n, bias=False, dtype=torch.bfloat16) for n in range(1, 5)]
def use(rows):
    for linear in maps:
        linear(torch.ones(rows, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
for rows in range(1, 150): use(rows)
give_back(); before = resident()
for rows in range(150, 250): use(rows)
give_back()
print(resident() - before)
"""
    (few,) = run(program)
    (all_kept,) = run(program.replace("keep_few_kernels()", ""))
    assert few < 0.5 * all_kept


def test_a_number_of_kernels_that_the_user_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


@pytest.mark.parametrize(("long_s", "times"), [(0.0, 1), (3600.0, 0)])
def test_a_long_step_on_a_cpu_gives_back_what_it_freed(
    monkeypatch: pytest.MonkeyPatch, long_s: float, times: int
) -> None:
    given: list[None] = []
    monkeypatch.setattr("dgpo_cli.training.loop.give_back", lambda: given.append(None))
    monkeypatch.setattr("dgpo_cli.training.loop._LONG_S", long_s)
    run_step(learner("seqkd", {}), Fixed("seqkd", trajectories()), Plan(1), 0)
    assert len(given) == times
