"""`accelerate launch -m dgpo_cli ...`: how training is started on several devices, here with one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import SOURCES
from tests.e2e.test_kill import FLAGS

pytestmark = pytest.mark.slow


def test_one_process_trains_as_the_command_itself_does(offline, tmp_path):
    arguments = [
        *("rl", "--student", str(offline.student), "--teacher", str(offline.teacher), "--index", str(offline.index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("validation"))),
        *("--steps", "1", "--batch-size", "4", "--device", "cpu", "-oeval_questions=2", "--json", *FLAGS),
    ]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "dgpo_cli"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    weights = []
    for name, start in (("plain", ["-m", "dgpo_cli"]), ("launched", launch)):
        (tmp_path / name).mkdir()
        ended = subprocess.run(
            [sys.executable, *start, *arguments], cwd=tmp_path / name, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        run = json.loads(ended.stdout)
        assert run["steps"] == 1
        weights.append((tmp_path / name / Path(run["run"]) / "best" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
