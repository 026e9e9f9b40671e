"""Every row of docs/benchmarks.md that wants a GPU, one after the other: `make bench-gpu`.

    python tests/bench/gpu.py                          all rows on a GPU, JSON and logs in bench-gpu/
    python tests/bench/gpu.py --only reference_step    one row, or some
    python tests/bench/gpu.py --small                  the same commands on the CPU in a minute or two, to try them

A row that is there already is not repeated (remove its JSON to do so), and a row that fails loses no other. Peers are
measured where PEERS, the interpreter of `make bench-step`, has them; what is not installed is told in the row.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    script: str
    arguments: str  # on a GPU
    small: str  # on the CPU
    peers: bool = False  # by the interpreter that has them


def rollout(model: str, episodes: int, more: str = "") -> Row:
    asked = f"--work reference --model {model} --episodes {episodes} --device cuda {more}"
    return Row("rollout.py", asked, f"--episodes 4 --device cpu {more} --rounds 1")


OURS = "--engines ours"
ROWS = {
    "rollout_0.5b_64": rollout("qwen-0.5b", 64),
    "rollout_0.5b_512": rollout("qwen-0.5b", 512, OURS),
    "rollout_0.5b_512_peers": rollout("qwen-0.5b", 512, '--rounds 1 --engines generate "continuous batching"'),
    "rollout_0.5b_vllm": rollout("qwen-0.5b", 64, "--engines vllm"),
    "rollout_3b_64": rollout("qwen-3b", 64, OURS),
    "rollout_3b_512": rollout("qwen-3b", 512, OURS),
    "kd_step": Row("kd_step.py", "--device cuda", "--tokens 8 --repetitions 1 --only dgpo naive", peers=True),
    "rl_step": Row("rl_step.py", "--device cuda", "--cases tinyworld --repetitions 1", peers=True),
    "teacher_8bit": Row(
        "teacher_8bit.py",
        "--model qwen-3b --batches 1 8 64 --tokens 1024 --device cuda",
        "--model tiny --batches 1 --rounds 1 --tokens 8 --device cpu",
    ),
    "reference_step": Row(
        "reference_step.py",
        "--device cuda",
        "--student tiny --teacher tiny-teacher --work tiny --episodes 4 --steps 2 --passages 200 --device cpu",
    ),
    "eval_throughput": Row(
        "eval_throughput.py",
        "--device cuda",
        "--models tiny --work tiny --at-once 2 --questions 4 --passages 200 --device cpu",
    ),
}


def run(name: str, asked: argparse.Namespace) -> str:
    """The state of a row afterwards: done, or why it is not."""
    row, result = ROWS[name], asked.folder / f"{name}.json"
    if result.exists():
        return "done before"
    python = asked.peers if row.peers and asked.peers is not None and asked.peers.exists() else sys.executable
    arguments = shlex.split(row.small if asked.small else row.arguments)
    made = result.with_suffix(".tmp")
    made.unlink(missing_ok=True)
    command = [str(python), str(HERE / row.script), *arguments, "--json", str(made)]
    print(f"{time.strftime('%H:%M:%S')} {name}: {shlex.join(command)}", file=sys.stderr, flush=True)
    source = str(HERE.parents[1] / "src")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}
    log = result.with_suffix(".log")
    with open(log, "w") as stream:
        try:
            status = subprocess.run(
                command, env=environment, stdout=stream, stderr=stream, timeout=asked.timeout
            ).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {asked.timeout:.0f} s, see {log}"
    if status:
        if made.exists():  # it says for each of its figures why there is none
            problem = "; ".join(f for f in figures(row.script, json.loads(made.read_text())) if "not run" in f)
        else:
            lines = log.read_text(errors="replace").strip().splitlines()
            problem = (lines or [f"status {status}"])[-1]
        missing = "not installed" in problem or "No module named" in problem
        return f"{'skipped' if missing else 'not measured'}: {problem[:300]} (see {log})"
    made.rename(result)
    return "done"


def figures(script: str, told: dict[str, Any]) -> Iterator[str]:
    """What a row found, a line each."""
    if script == "rollout.py":
        yield f"{told['bandwidth_gb_s']:,} GB/s, {told['tflops']} TFLOP/s measured"
        for row in told["rows"]:
            what = f"{row['engine']}, {row['episodes']} at once"
            if "failed" in row:
                yield f"{what}: not run: {row['failed']}"
                continue
            share = f", {row['share_of_bound']:.1%} of the bound" if "share_of_bound" in row else ""
            yield f"{what}: {row['episodes_per_s']:,} episodes/s, {row['tokens_per_s']:,} tokens/s{share}"
    elif script == "kd_step.py":
        for name, rows in told["runs"].items():
            found = told["medians"].get(name)
            yield f"{name}: " + (
                f"not run: {rows[0]['error']}"
                if found is None
                else f"{found['seconds']:.3f} s, {found['extra_bytes'] / 1e9:.2f} GB extra"
            )
    elif script == "rl_step.py":
        for case, runs in told["runs"].items():
            for name, rows in runs.items():
                problem = rows[0].get("error")
                yield f"{case}, {name}: " + (f"not run: {problem}" if problem else f"{rows[0][told['clock']]:.3f} s")
    elif script == "teacher_8bit.py":
        for row in told["rows"]:
            speed = row["tokens_per_s"]
            yield (
                f"batch {row['batch']}: {speed['16 bit']:,} and {speed['8 bit']:,} tokens/s in 16 and 8 bit, "
                f"KL {row['kl_mean']:.4f}"
            )
    elif script == "reference_step.py":
        for name, row in told["rows"].items():
            yield f"teacher in {name}: " + (
                f"not run: {row['error']}"
                if "error" in row
                else f"{row['seconds']['step']:.1f} s a step, {max(row['memory'].values()) / 1e9:.1f} GB, "
                f"1,000 steps of 512 in {row['hours']:.1f} h (target {told['target_hours']:.0f})"
            )
    else:
        for row in told["rows"]:
            what = f"{row['model']}, {row['at_once']} at once"
            yield f"{what}: " + (
                f"not run: {row['error']}"
                if "error" in row
                else f"51,713 questions in {row['all_questions_s']:,} s (target {told['target_s']:,})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--folder", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--peers", type=Path, help="interpreter with trl and liger-kernel")
    parser.add_argument("--timeout", type=float, default=1_800.0, help="seconds of a row")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.small:
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: no GPU here\nhint: --small tries the same commands on the CPU")
    states = {name: run(name, asked) for name in asked.only}
    print("| row | state | figures |\n|---|---|---|")
    for name, state in states.items():
        result = asked.folder / f"{name}.json"
        told = json.loads(result.read_text()) if result.exists() else None
        print(f"| {name} | {state} | {'' if told is None else '; '.join(figures(ROWS[name].script, told))} |")
    sys.exit(0 if all(state.startswith(("done", "skipped")) for state in states.values()) else 1)


if __name__ == "__main__":
    main()
