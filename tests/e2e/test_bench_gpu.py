"""The commands of `make bench-gpu` at tiny sizes on the CPU, so that they run where a GPU is at hand."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks"
SOURCES = BENCH.parent / "src"
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
    """A module of benchmarks by name, as its scripts import it."""
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
    return subprocess.run(command, capture_output=True, text=True, env=environment(*path))


def environment(*path):
    return {"PYTHONPATH": ":".join(map(str, (*path, SOURCES))), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_row_that_is_done_is_not_repeated_and_a_row_without_time_is_not_begun(tmp_path):
    (tmp_path / "results.json").write_text('{"kd_step": {"state": "done", "figures": ["as before"]}}')
    ended = small(tmp_path, "rl_step", "kd_step", more=["--budget", "5"])
    assert ended.returncode == 1
    assert "kd_step: done; as before" in ended.stdout
    assert "rl_step: not measured: no time was left" in ended.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "log.txt", "table.md"}


def test_a_row_at_its_limit_is_ended_with_all_that_it_started(bench, tmp_path):
    gpu = bench("gpu")
    marker = f"sleep {time.time_ns() % 1_000_000 + 1_000_000}"
    status = gpu._ended(["/bin/sh", "-c", f"{marker} & {marker}"], tmp_path / "log", 0.3)
    ends = time.monotonic() + 30  # a signal takes its time on a busy machine
    assert status is None
    while subprocess.run(["pgrep", "-f", marker], capture_output=True).returncode == 0:
        assert time.monotonic() < ends, "a process of the row is alive"
        time.sleep(0.1)


def test_rows_that_fail_say_so_and_the_next_one_runs(tmp_path):
    """By an interpreter that does nothing but fail; a second call tries them again."""
    for _ in range(2):
        ended = small(tmp_path, "kd_step_peers", "rl_step", more=["--peers", "/bin/false"])
        assert ended.returncode == 1
        for row in ("kd_step_peers", "rl_step"):
            assert results(tmp_path)[row]["state"] == "failed: status 1"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_missing(tmp_path):
    """Killed while its second row runs: the first one's result is there, and is not measured again."""
    command = [sys.executable, str(BENCH / "gpu.py"), "--small", "--folder", str(tmp_path)]
    first = subprocess.Popen(
        [*command, "--only", "rl_step", "kd_step"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    for line in first.stderr:
        if "kd_step" in line:
            break
    first.kill()
    first.wait()
    before = results(tmp_path)
    assert before.keys() == {"rl_step"} and before["rl_step"]["state"] == "done"
    ended = small(tmp_path, "rl_step", "kd_step")
    assert ended.returncode == 0, ended.stderr
    assert "rl_step," not in ended.stderr and "kd_step," in ended.stderr
    assert results(tmp_path)["rl_step"] == before["rl_step"] and results(tmp_path)["kd_step"]["state"] == "done"


def test_the_table_of_the_docs_is_the_one_of_the_results(bench):
    gpu = bench("gpu")
    kept = json.loads(gpu.KEPT.read_text()) if gpu.KEPT.exists() else {}
    document = gpu.DOCS.read_text()
    assert gpu.render(document, kept) == document, "python benchmarks/gpu.py --render"
    told = {"device": "NVIDIA H100", "versions": {"torch": "2.11.0"}}
    shown = gpu.table({"kd_step": {"state": "done", "figures": ["1 s", "2 GB"], "seconds": 7.0, "told": told}})
    assert shown.endswith("\n\nMeasured on NVIDIA H100, torch 2.11.0.\n")
    assert "| 1 s; 2 GB | 7.0 |" in shown and shown.count("| not measured | - |") == len(gpu.ROWS) - 1


def test_checks_are_counted_and_failures_named(bench, tmp_path):
    gpu = bench("gpu")
    file = tmp_path / "told.json"
    file.write_text(
        '<testsuites><testsuite tests="3" skipped="1"><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure message="1 is not 2"/></testcase></testsuite></testsuites>'
    )
    assert list(gpu.figures("pytest", gpu._told(file))) == ["1 passed, 1 skipped, 1 failed", "failed: a::c: 1 is not 2"]


@pytest.mark.slow
def test_every_row_runs(bench, tmp_path):
    rows = tuple(bench("gpu").ROWS)
    ended = small(tmp_path, *rows)
    states = {name: row["state"] for name, row in results(tmp_path).items()}
    assert ended.returncode == 0, ended.stdout + ended.stderr
    allowed = ("done", "skipped: ours") if importlib.util.find_spec("bitsandbytes") else ("done", "skipped")
    assert tuple(states) == rows
    for name, state in states.items():
        assert state.startswith("skipped: vllm" if name == "rollout_0.5b_vllm" else allowed), (name, state)
    step = results(tmp_path)["reference_step"]["told"]["rows"]["16 bit"]
    for measured in step["steps"]:
        assert measured["student and critic"] + measured["teacher"] <= measured["signals"]
        assert measured["search"] > 0 and measured["teacher"] > 0 and measured["update"] > 0
        assert measured["searches"] == 2.0, "every episode searched as often as it was told to"


@pytest.mark.slow
def test_the_row_of_vllm_by_a_double_of_it(tmp_path):
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    ended = small(tmp_path / "rows", "rollout_0.5b_vllm", path=[tmp_path])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = results(tmp_path / "rows")["rollout_0.5b_vllm"]["told"]["rows"]
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
