"""One training step on models of the true size of Qwen2.5-0.5B, at a bounded cost: see benchmarks/real_size.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "real_size.py"


# kd keeps the student and its moments in float32, as the command does: 8 GB of the bound.
@pytest.mark.parametrize(("stage", "bound_gb"), [("kd", 11.5), ("k1-reward", 10), ("full-loss", 10)])
def test_one_step(stage, bound_gb):
    ended = subprocess.run([sys.executable, str(SCRIPT), stage], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["teacher_parameters"] == 494_032_768
    assert result["teacher_8bit_modules"] == 24 * 7, "q, k, v, o, gate, up and down of every layer"
    assert result["logits_finite"] and result["moved"] > 0
    assert result["peak_gb"] < bound_gb
