"""`kill -9` in the middle of each long command, then the same command again: the result of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.e2e.test_resume import assert_same_run, assert_same_trajectories
from tests.offline import ROLLOUT

from dgpo_cli.core.run_dir import list_runs
from dgpo_cli.core.run_record import read_run

pytestmark = pytest.mark.slow
FLAGS = [
    f"-orollout.{name}={getattr(ROLLOUT, name)}"
    for name in (
        "top_k",
        "max_turns",
        "max_new_tokens",
        "max_observation_tokens",
        "max_prompt_tokens",
        "max_tokens",
        "wave",
    )
]


def start(folder, arguments):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dgpo_cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder, arguments):
    process = start(folder, arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def lines(file):
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


def kill_when(folder, arguments, file, count):
    """Start the command and kill it as soon as `file` has `count` lines. Returns how many lines it had."""
    process = start(folder, arguments)
    deadline = time.monotonic() + 120
    while lines(folder / file) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[0]}"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return lines(folder / file)


def only_run(folder):
    runs = list_runs(folder / "runs")
    assert len(runs) == 1, "the second call must go on with the first one's run"
    assert read_run(runs[0])["status"] == "finished"
    return runs[0]


def disturbed(tmp_path, arguments, file, counts):
    """Run folders of an undisturbed run and of one killed at each of `counts` lines of `file`."""
    finish(tmp_path / "whole", arguments)
    for count in counts:
        kill_when(tmp_path / "killed", arguments, file, count)
    output = finish(tmp_path / "killed", arguments)
    assert "going on with" in output
    return only_run(tmp_path / "whole"), only_run(tmp_path / "killed")


def distill(offline, limit):
    return [
        *("distill-data", "--teacher", offline.teacher, "--index", offline.index),
        *("--data", offline.questions("train"), "--keep", "all", "--limit", limit, *FLAGS),
    ]


def test_distill_data(offline, tmp_path):
    file = "runs/distill-data-0001/episodes.jsonl"
    whole, killed = disturbed(tmp_path, distill(offline, 120), file, [3, 30, 77])

    assert_same_trajectories(killed, whole, 120)


def test_kd(offline, tmp_path):
    finish(tmp_path / "data", distill(offline, 60))
    arguments = [
        *("kd", "--student", offline.student, "--teacher", offline.teacher),
        *("--data", tmp_path / "data" / "runs" / "distill-data-0001", "--epochs", 20, "--batch-size", 10, "--lr", 0.01),
    ]
    assert_same_run(*disturbed(tmp_path, arguments, "runs/kd-0001/metrics.jsonl", [2, 40, 75]))


@pytest.mark.parametrize("form", ["k1-reward", "full-loss"])
def test_rl(offline, tmp_path, form):
    arguments = [
        *("rl", "--student", offline.student, "--teacher", offline.teacher, "--index", offline.index),
        *("--data", offline.questions("train"), "--eval-data", offline.questions("validation")),
        *("--steps", 30, "--batch-size", 8, "--lr", 0.01, "--kl-form", form, "--kl-coef", 0.1),
        *("-osave_every=4", "-oeval_every=8", "-oeval_limit=8", "-owarmup_steps=0", *FLAGS),
    ]
    assert_same_run(*disturbed(tmp_path, arguments, "runs/rl-0001/metrics.jsonl", [1, 10, 23]))
