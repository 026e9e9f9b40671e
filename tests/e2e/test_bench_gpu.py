"""The commands of `make bench-gpu` at tiny sizes on the CPU, so that they run where a GPU is at hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = (
    *("rollout_0.5b_64", "rollout_0.5b_512", "rollout_0.5b_512_peers", "rollout_0.5b_vllm", "rollout_3b_64"),
    *("rollout_3b_512", "kd_step", "rl_step", "teacher_8bit", "reference_step", "eval_throughput"),
)
BENCH = Path(__file__).parents[1] / "bench"
SOURCES = BENCH.parents[1] / "src"
FAKE_VLLM = """
from types import SimpleNamespace
__version__ = "0"
class SamplingParams:
    def __init__(self, **given): self.__dict__.update(given)
class LLM:
    def __init__(self, model, **given): assert (__import__("pathlib").Path(model) / "tokenizer.json").is_file()
    def generate(self, prompts, parameters, use_tqdm):
        def output(p):
            ids = [1] * p.max_tokens
            logprobs = [{1: SimpleNamespace(logprob=-1.0)} for _ in ids]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="length")])
        return [output(p) for p in parameters]
"""


@pytest.fixture
def bench(monkeypatch):
    """A module of tests/bench by name, as its scripts import it."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


def small(folder, *rows, path=(), more=()):
    command = [sys.executable, str(BENCH / "gpu.py"), "--small", "--folder", str(folder), "--only", *rows, *more]
    environment = {"PYTHONPATH": ":".join(map(str, (*path, SOURCES))), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_row_that_takes_too_long_loses_no_other_and_one_that_is_there_is_not_repeated(tmp_path):
    (tmp_path / "kd_step.json").write_text('{"runs": {"naive": [{"error": "x"}]}, "medians": {}}')
    ended = small(tmp_path, "rl_step", "kd_step", more=["--timeout", "0.2"])
    assert ended.returncode == 1
    assert "| rl_step | stopped after 0 s, see " in ended.stdout
    assert "| kd_step | done before | naive: not run: x |" in ended.stdout


def test_rows_that_fail_say_so_and_the_next_one_runs(tmp_path):
    """By an interpreter that does nothing but fail."""
    ended = small(tmp_path, "kd_step", "rl_step", more=["--peers", "/bin/false"])
    assert ended.returncode == 1
    for row in ("kd_step", "rl_step"):
        assert f"| {row} | not measured: status 1 (see {tmp_path / row}.log) |" in ended.stdout


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    ended = small(tmp_path, *ROWS)
    rows = [line.split(" | ") for line in ended.stdout.splitlines()[2:]]
    states = {row[0].strip("| "): row[1] for row in rows}
    assert ended.returncode == 0, ended.stdout + ended.stderr
    allowed = ("done", "skipped: ours") if importlib.util.find_spec("bitsandbytes") else ("done", "skipped")
    assert tuple(states) == ROWS
    for name, state in states.items():
        assert state.startswith("skipped: vllm" if name == "rollout_0.5b_vllm" else allowed), (name, state)
    step = json.loads((tmp_path / "reference_step.json").read_text())["rows"]["16 bit"]
    for measured in step["steps"]:
        assert measured["student and critic"] + measured["teacher"] <= measured["signals"]
        assert measured["search"] > 0 and measured["teacher"] > 0 and measured["update"] > 0
        assert measured["searches"] == 2.0, "every episode searched as often as it was told to"


@pytest.mark.slow
def test_the_row_of_vllm_by_a_double_of_it(tmp_path):
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    ended = small(tmp_path / "rows", "rollout_0.5b_vllm", path=[tmp_path])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "rows" / "rollout_0.5b_vllm.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == ["bound", "vllm"] and rows[1]["tokens_per_s"] > 0


def test_prompts_and_observations_have_the_reference_s_lengths(bench, tmp_path):
    from dgpo_cli.models.codec import Codec

    forced = bench("forced")
    words = forced.tokenizer(2_000)
    assert len(words) == 2_000 and not Codec(words, forced.DEFAULT).eos_ids
    work = forced.WORKS["reference"]
    codec = Codec(words, work.protocol)
    asked = forced.questions(work, codec, 5)
    assert all(290 <= len(codec.prompt_ids(q.text).ids) <= 300 for q in asked)
    hits = forced.retriever(tmp_path, None, 200).search([work.text("bench/1/0", 0)], 3)[0]
    assert 490 <= len(codec.observation_ids([hit.passage for hit in hits], work.read).ids) <= 500
    lengths, right = zip(*(work.draw(f"bench/{i}/0") for i in range(2_000)), strict=True)
    assert min(lengths) == 50 and max(lengths) == 150 and 0.37 < sum(right) / 2_000 < 0.43


def test_hours_and_questions_are_extrapolated(bench):
    step, evaluation = bench("reference_step"), bench("eval_throughput")
    assert step.hours(86.4, 512) == pytest.approx(24.0)
    assert step.hours(21.6, 128) == pytest.approx(24.0)
    assert evaluation.extrapolated(100.0, 1_000) == pytest.approx(5_171.3)
