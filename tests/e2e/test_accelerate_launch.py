"""`accelerate launch -m dgpo_cli ...`: how training is started on several devices, here on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.conftest import SOURCES
from tests.e2e.test_kill import FLAGS, lines

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCES)}
PLAIN = ["-m", "dgpo_cli"]


def launched(processes):
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    options = ["--num_processes", str(processes), "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", *several, *options, "-m", "dgpo_cli"]


def arguments(offline, steps, *more):
    return [
        *("rl", "--student", str(offline.student), "--teacher", str(offline.teacher), "--index", str(offline.index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("validation"))),
        *("--steps", str(steps), "--batch-size", "4", "-oeval_limit=2", "-osave_every=2", "--json", *FLAGS, *more),
    ]


def run(folder, start, given):
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *start, *given], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def best(folder, ended):
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout)  # one object, whatever the number of processes
    return made["steps"], folder / Path(made["run"]) / "best" / "model.safetensors"


def told(ended_stderr, start):
    return [line for line in ended_stderr.splitlines() if line.startswith(start)]


def test_one_process_trains_as_the_command_itself_does(offline, tmp_path):
    weights = []
    for name, start in (("plain", PLAIN), ("launched", launched(1))):
        steps, file = best(tmp_path / name, run(tmp_path / name, start, arguments(offline, 1, "--device", "cpu")))
        assert steps == 1
        weights.append(file.read_bytes())
    assert weights[0] == weights[1]


def test_two_processes_train_as_one(offline, tmp_path):
    ended = run(tmp_path / "two", launched(2), arguments(offline, 3))
    assert len(told(ended.stderr, "2 processes train together")) == 1
    steps, file = best(tmp_path / "two", ended)
    assert steps == 3 and [p.name for p in (tmp_path / "two" / "runs").iterdir()] == ["rl-0001"]
    _, alone = best(tmp_path / "one", run(tmp_path / "one", PLAIN, arguments(offline, 3)))
    one, two = load_file(alone), load_file(file)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["rl", "--index", "nowhere", "--student", "nothing"], "unknown model 'nothing'"),
        (["rl", "--batch-size", "many"], "--batch-size"),
        (["eval", "--model", "x"], "2 processes were launched, and `dgpo eval` runs in one"),
    ],
    ids=["before training", "wrong usage", "a command that runs in one"],
)
def test_an_error_is_told_once(tmp_path, given, message):
    ended = run(tmp_path, launched(2), given)
    errors = told(ended.stderr, "error:")
    assert ended.returncode != 0 and len(errors) == 1 and message in errors[0], ended.stderr


@pytest.mark.parametrize("whom", ["all of them", "the launcher"])
def test_ctrl_c_stops_all_and_one_goes_on(offline, tmp_path, whom):
    given = arguments(offline, 2000)
    process = subprocess.Popen(
        [sys.executable, *launched(2), *given],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while lines(tmp_path / "runs/rl-0001/metrics.jsonl") < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    (os.killpg if whom == "all of them" else os.kill)(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and len(told(stderr, "stopped; the same command goes on")) == 1, stderr
    saved = [p.name for p in (tmp_path / "runs/rl-0001/state").glob("step-*")]
    assert saved
    done = int(saved[-1].removeprefix("step-"))
    folder = tmp_path / "runs/rl-0001"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    # The settings are the same, so the run folder is taken up again; it is not waited for.
    again = subprocess.Popen(
        [sys.executable, *PLAIN, *given], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    rows = folder / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            steps = [json.loads(line)["step"] for line in rows.read_text().splitlines() if line.endswith("}")]
            if steps[-1] >= done + 3 and steps == sorted(steps):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"the run did not go on after step {done}")
    finally:
        again.kill()
        again.wait()
