"""What the doctor finds, and what it concludes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import pytest

from dgpo_cli.core import hub
from dgpo_cli.models import half
from dgpo_cli.planning import doctor
from dgpo_cli.planning.doctor import Check, Device, judge

SOUND = {name: Check(name, "ok", "") for name in ("packages", "memory", "disk", "hub")}


def works(device: Device, **changed: str) -> dict[str, bool]:
    checks = SOUND | {name: Check(name, status, "") for name, status in changed.items()}  # type: ignore[arg-type]
    return {verdict.task: verdict.works for verdict in judge(device, checks)}


def test_one_thread_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, shown in ((1, "CPU only, 1 thread ("), (2, "CPU only, 2 threads (")):
        monkeypatch.setattr("torch.get_num_threads", lambda count=threads: count)
        assert doctor.describe_device(Device("CPU", 8.0, accelerated=False)).startswith(shown)


def test_memory_decides_what_can_be_trained() -> None:
    # 0.49e9 parameters trained at 16 bytes are 7.8 GB; rl has two such models, and a 3.09e9 teacher at 2 or 1 bytes.
    rl, rl_8bit, kd = "dgpo rl", "dgpo rl --teacher-8bit", "dgpo kd, qwen-0.5b from qwen-3b"
    large = works(Device("H100", 80.0, accelerated=True))
    assert all(large.values())
    middle = works(Device("card", 25.0, accelerated=True))
    assert (middle[rl], middle[rl_8bit], middle[kd]) == (False, True, True)
    small = works(Device("card", 8.0, accelerated=True))
    assert (small[rl_8bit], small[kd], small["dgpo quickstart"]) == (False, False, True)


def test_free_memory_is_compared_and_not_all_of_it() -> None:
    assert works(Device("CPU", 64.0, accelerated=False, free_gb=40.0))["dgpo rl"]
    assert not works(Device("CPU", 64.0, accelerated=False, free_gb=8.0))["dgpo rl"]
    assert doctor.check_memory(64.0, 1.0).status == "problem"
    assert doctor.check_memory(64.0, 16.0).found == "14.9 of 59.6 GiB are free"  # the unit of what fits into it


def test_memory_that_a_gpu_shares_is_counted_as_by_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start knows CUDA and takes all else as main memory: no context of CUDA, and no allocator of its own."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = doctor.find_device(16.0, 12.0)
    assert (found.room.device, found.room.bytes, found.room.accelerated) == ("mps", 12 * 10**9, False)
    assert Device("H100", 80.0, accelerated=True).room.device == "cuda"


def test_a_model_that_is_neither_here_nor_to_be_reached_works_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("H100", 80.0, accelerated=True)
    monkeypatch.setattr(doctor, "is_cached", lambda repo: "0.5B" in repo)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    offline = works(device, hub="note")
    assert offline["dgpo eval, dgpo chat with qwen-0.5b"]
    assert not offline["dgpo rl"] and not offline["dgpo eval, dgpo chat with smollm2-135m"]


@pytest.mark.parametrize(("bf16", "size"), [(False, "7.1"), (True, "3.8")])
def test_what_a_model_of_a_laptop_takes_is_what_the_plan_says(
    bf16: bool, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "processor_has_bf16", lambda: bf16)
    checks = {name: Check(name, "ok", "") for name in SOUND}
    said = {v.task: v.why for v in judge(Device("CPU", 24.0, accelerated=False), checks)}
    # 0.54 GB of weights, 0.5 of libraries, 64 episodes of 2,200 tokens with 46,080 bytes of keys and values each; in
    # bf16 half of all but the libraries.
    assert f"needs about {size} GiB" in said["dgpo eval, dgpo chat with smollm2-135m"]


def test_nothing_works_without_the_packages() -> None:
    assert not any(works(Device("H100", 80.0, accelerated=True), packages="problem").values())


def test_a_full_disk_stops_the_quickstart() -> None:
    assert not works(Device("CPU", 16.0, accelerated=False), disk="problem")["dgpo quickstart"]


def test_a_missing_or_old_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=99", "no-such-thing>=1", "pytest; extra == 'dev'"])
    check = doctor.check_packages()
    assert check.status == "problem"
    assert "no-such-thing>=1" in check.found
    assert "torch>=99 (is " in check.found
    assert "pytest" not in check.found


def test_the_hub_may_be_switched_off_or_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.unreachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert doctor.check_hub().found == "HF_HUB_OFFLINE is set"
    hub.unreachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    check = doctor.check_hub()
    hub.unreachable.cache_clear()
    assert check.status == "note"
    assert "does not answer" in check.found


def test_the_command_reports_everything(dgpo: Callable[..., Any]) -> None:
    ended = dgpo("doctor", "--json", "--quiet")
    report = json.loads(ended.out)
    assert ended.status == (0 if report["healthy"] else 1)
    assert ended.err == ""
    assert [check["name"] for check in report["checks"]] == [
        "python", "processor", "memory", "device", "disk", "packages", "8-bit", "hub",
    ]  # fmt: skip
    expected = "ok" if find_spec("bitsandbytes") else "note"
    assert {check["name"]: check["status"] for check in report["checks"]}["8-bit"] == expected
    assert report["works"][0]["task"] == "dgpo quickstart"


def test_a_sick_machine_ends_with_status_1(dgpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_packages", lambda: Check("packages", "problem", "missing: x", "install x"))
    ended = dgpo("doctor", "--quiet")
    assert ended.status == 1
    assert "packages: install x" in ended.out
