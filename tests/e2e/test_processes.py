"""Two processes train as one does: the same episodes, the same losses, nearly the same weights."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_resume import kd_settings, logged, rl_settings, train, trajectories, weights  # noqa: F401
from tests.processes import together

from dgpo_cli.core.run_dir import FollowedRun, RunDir
from dgpo_cli.pipelines.kd import run_kd
from dgpo_cli.pipelines.rl import run_rl
from dgpo_cli.pipelines.training import open_together
from dgpo_cli.train import step as step_module


def train_together(kind, settings, out):
    """A process's part of a run; what its student is at the end."""
    students = []
    original = step_module.optimizer_step

    command = {"kd": run_kd, "rl": run_rl}[kind]
    with open_together(lambda: RunDir.open(kind, asdict(settings), out=out)) as run:
        result = command(settings, run, keep=1, progress=None)
    return type(run).__name__, {k: v for k, v in result.items() if k != "seconds"}


CASES = {"kd": ("kd", "kd", {}), "ppo": ("rl", "ppo", {})}


@pytest.mark.parametrize("size", [2])
def test_kd(offline, trajectories, tmp_path, size):
    settings = kd_settings(offline, trajectories)
    train("kd", settings, tmp_path / "one")
    print(together(size, train_together, "kd", settings, tmp_path / "two"))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two")):
        print(a, b, sep="\n")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for f in one:
        print(f, max(float((one[f][n] - two[f][n]).abs().max()) for n in one[f]))
    assert 0


@pytest.mark.parametrize("size", [2])
def test_rl(offline, tmp_path, size):
    settings = rl_settings(offline, "dgpo")
    train("rl", settings, tmp_path / "one")
    print(together(size, train_together, "rl", settings, tmp_path / "two"))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two")):
        print(a, b, sep="\n")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for f in one:
        print(f, max(float((one[f][n] - two[f][n]).abs().max()) for n in one[f]))
    assert 0
