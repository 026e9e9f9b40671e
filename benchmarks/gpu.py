"""Every row of docs/benchmarks.md that wants a GPU, one after the other: `make bench-gpu`.

    python benchmarks/gpu.py                          all rows on a GPU, into bench-gpu/
    python benchmarks/gpu.py --budget 570             what fits into 570 seconds, the most telling rows first
    python benchmarks/gpu.py --only reference_step    one row, or some
    python benchmarks/gpu.py --small                  the same commands on the CPU, to try them
    python benchmarks/gpu.py --prepare                where there is a package index: fetch what the GPU machine lacks
    python benchmarks/gpu.py --render                 docs/benchmarks.md's table from docs/benchmarks/gpu.json

It runs from a checkout with what is installed: torch, transformers and pytest are enough, with the wheels of .whl/,
which are read where they lie, and what else a row lacks is told in it. Each row is a process with a time limit of its
own; its result is in results.json as soon as it ends. A call repeats no row that is done there, and tries the others
again, so a run that was stopped goes on with what is missing. The folder has three files: results.json, log.txt (what
the rows printed) and table.md. Peers are measured where PEERS, the interpreter of `make bench-step`, has them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCS, KEPT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks" / "gpu.json"
BEGIN, END = "<!-- table of benchmarks/gpu.py -->", "<!-- end of the table -->"
WHEELS = ROOT / ".whl"
CARRIED = ("tomli_w==1.2.0", "rank-bm25==0.2.2")  # pure Python, needed by rows, on no GPU machine
WORTH = 0.5  # a row is not begun with less than this share of its limit left
SMALL = (20.0, 450.0)  # seconds that are left at least and at most with --small: the checks take minutes on a CPU


@dataclass(frozen=True)
class Row:
    work: str
    target: str
    limit: float  # seconds on a GPU
    script: str
    arguments: str  # on a GPU
    small: str  # on the CPU
    peers: bool = False  # by the interpreter that has them

    def seconds(self, small: bool) -> tuple[float, float]:
        """It is not begun with less left than the first, and stopped after the second."""
        return SMALL if small else (WORTH * self.limit, self.limit)

    @property
    def command(self) -> str:
        return f"{self.script} {self.arguments}".strip()


def rollout(work: str, target: str, limit: float, model: str, episodes: int, more: str = "") -> Row:
    asked = f"--work reference --model {model} --episodes {episodes} --device cuda {more}".strip()
    return Row(work, target, limit, "rollout.py", asked, f"--episodes 4 --device cpu {more} --rounds 1")


REFERENCE_SMALL = (
    "--student tiny --teacher tiny-teacher --work tiny --episodes 4 --steps 2 --passages 200 --device cpu "
)
ROWS = {  # the most telling first
    "checks": Row(
        "tests that want a GPU: attention, steps, graphs, search, 8 bit, --fit, out of memory",
        "all pass",
        150,
        "pytest",
        "-m gpu tests/gpu tests/unit/test_burst.py --device cuda",
        "-m gpu tests/gpu --device cpu",
    ),
    "rollout_0.5b_512": rollout(
        "rollouts, 0.5B, 512 at once", "40,000 generated tokens/s, half of the bound", 100, "qwen-0.5b", 512,
        "--engines ours --rounds 1",
    ),
    "rollout_0.5b_64": rollout(
        "rollouts, 0.5B, 64 at once", "10 times `generate`", 110, "qwen-0.5b", 64, "--engines ours generate --rounds 1"
    ),
    "kd_step": Row(
        "kd step, N = 8,192",
        "a quarter of naive's memory, 1.1 times its time",
        60,
        "kd_step.py",
        "--device cuda --only dgpo naive --repetitions 3",
        "--tokens 8 --repetitions 1 --only dgpo naive",
    ),
    "reference_step_128": Row(
        "step of the reference recipe at 128 episodes, 16-bit teacher: seconds by phase, memory",
        "1,000 steps of 512 episodes in 24 h",
        160,
        "reference_step.py",
        '--device cuda --episodes 128 --steps 2 --teachers "16 bit"',
        REFERENCE_SMALL + '--teachers "16 bit"',
    ),
    "rl_step": Row(
        "rl step, 0.5B, update only", "1.5 times TRL", 60, "rl_step.py", "--device cuda",
        "--cases tinyworld --repetitions 1", peers=True,
    ),
    **{
        f"way_{name}": rollout(
            f"rollouts, 0.5B, 512 at once, the other way: {name}", "-", 90, "qwen-0.5b", 512,
            f"--engines ours --rounds 1 --way {name}={value}",
        )
        for name, value in (("cudnn_attention", "true"), ("steps_per_doubling", "2"))
    },
    **{
        f"way_{name}": Row(
            f"rl step, 0.5B, the other way: {name}", "-", 60, "rl_step.py", f"--device cuda --way {name}={value}",
            f"--cases tinyworld --repetitions 1 --way {name}={value}",
        )
        for name, value in (("fused_adam", "false"), ("block_logits", "67108864"))
    },
    "teacher_8bit": Row(
        "an 8-bit teacher of 3B, by batch",
        "-",
        120,
        "teacher_8bit.py",
        "--model qwen-3b --batches 1 8 64 --tokens 1024 --device cuda",
        "--model tiny --batches 1 --rounds 1 --tokens 8 --device cpu",
    ),
    "reference_step": Row(
        "step of the reference recipe at 512 episodes, either teacher",
        "1,000 steps in 24 h on one H200 (reference: 8 GPUs, a day)",
        1_200,
        "reference_step.py",
        "--device cuda",
        REFERENCE_SMALL,
    ),
    "rollout_0.5b_64_peers": rollout(
        "rollouts, 0.5B, 64 at once, continuous batching", "ours 5 times", 600, "qwen-0.5b", 64,
        '--rounds 1 --engines "continuous batching"',
    ),
    "rollout_0.5b_512_peers": rollout(
        "rollouts, 0.5B, 512 at once, peers", "-", 900, "qwen-0.5b", 512,
        '--rounds 1 --engines generate "continuous batching"',
    ),
    "rollout_0.5b_vllm": rollout("rollouts, 0.5B, vLLM", "-", 600, "qwen-0.5b", 64, "--engines vllm"),
    "rollout_3b_64": rollout("rollouts, 3B, 64 at once", "-", 300, "qwen-3b", 64, "--engines ours"),
    "rollout_3b_512": rollout("rollouts, 3B, 512 at once", "-", 600, "qwen-3b", 512, "--engines ours"),
    "kd_step_peers": Row(
        "kd step, N = 8,192, TRL and Liger", "no more memory than Liger's; 1.1 times the fastest", 600, "kd_step.py",
        "--device cuda", "--tokens 8 --repetitions 1 --only dgpo naive", peers=True,
    ),
    "eval_throughput": Row(
        "`eval` of 51,713 questions, from a sample",
        "1 h on one H200 (published: 6,000 s, a 3B on 8 cards)",
        1_200,
        "eval_throughput.py",
        "--device cuda",
        "--models tiny --work tiny --at-once 2 --questions 4 --passages 200 --device cpu",
    ),
}  # fmt: skip


class Results:
    """What is known of every row, on disk after each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.log, self._table = (folder / name for name in ("results.json", "log.txt", "table.md"))
        self.rows: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def keep(self, name: str, row: dict[str, Any], printed: str) -> None:
        self.rows[name] = row
        with open(self.log, "a") as stream:
            stream.write(f"=== {name}: {row['state']}\n{printed[-40_000:].strip()}\n")
        for file, text in ((self.file, json.dumps(self.rows, indent=1) + "\n"), (self._table, table(self.rows))):
            written = file.with_suffix(".tmp")
            written.write_text(text)
            written.replace(file)


def run(name: str, asked: argparse.Namespace, limit: float) -> tuple[dict[str, Any], str]:
    """A row's state, seconds, command, figures and all that it told; and what it printed."""
    row = ROWS[name]
    python = asked.peers if row.peers and asked.peers is not None and asked.peers.exists() else sys.executable
    arguments = shlex.split(row.small if asked.small else row.arguments)
    with tempfile.TemporaryDirectory() as place:
        made, log = Path(place) / "told.json", Path(place) / "log"
        if row.script == "pytest":
            command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, f"--junitxml={made}"]
        else:
            command = [str(python), str(HERE / row.script), *arguments, "--json", str(made)]
        print(f"{time.strftime('%H:%M:%S')} {name}, {limit:.0f} s at most: {shlex.join(command)}", file=sys.stderr)
        started = time.monotonic()
        status = _ended(command, log, limit)
        row_seconds = round(time.monotonic() - started, 1)
        printed = log.read_text(errors="replace")
        told = _told(made)
    told_figures = list(figures(row.script, told)) if told else []
    if status is None:
        state = f"stopped after {limit:.0f} s"
    elif status == 0:
        state = "done"
    else:
        lines = printed.strip().splitlines()
        problems = [f for f in told_figures if "not run" in f or "failed" in f]
        problem = "; ".join(problems) or (lines or [f"status {status}"])[-1]
        missing = "not installed" in problem or "No module named" in problem
        state = f"{'skipped' if missing else 'failed'}: {problem[:300]}"
    found = {"state": state, "seconds": row_seconds, "command": row.command, "figures": told_figures, "told": told}
    return found | ({"small": True} if asked.small else {}), printed


def _ended(command: list[str], log: Path, limit: float) -> int | None:
    """The status of a command and of all that it starts; None where it had to be stopped."""
    places = [str(ROOT / "src"), *map(str, sorted(WHEELS.glob("*-none-any.whl"))), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    with open(log, "w") as stream:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _told(made: Path) -> dict[str, Any]:
    """The JSON object of a script; of pytest its counts and what failed."""
    if not made.exists():
        return {}
    if made.read_text().lstrip().startswith("{"):
        return dict(json.loads(made.read_text()))
    suite = ET.parse(made).getroot().find("testsuite")
    assert suite is not None
    failed = {
        f"{case.get('classname')}::{case.get('name')}": str(problem.get("message"))[:500]
        for case in suite.iter("testcase")
        for problem in [*case.iter("failure"), *case.iter("error")]
    }
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    return {"passed": total - skipped - len(failed), "skipped": skipped, "failed": failed}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line per row, measured or not."""
    lines = ["| row | work | target | figure | seconds |", "|---|---|---|---|--:|"]
    for name, row in ROWS.items():
        found = rows.get(name, {"state": "not measured"})
        done = found["state"] == "done" and not found.get("small")
        figure = "; ".join(found["figures"]) if done else "not measured" if found.get("small") else found["state"]
        lines.append(
            f"| `{name}`: `{row.command}` | {row.work} | {row.target} | {figure} | {found.get('seconds', '-')} |"
        )
    cards = {f"{row['told']['device']}, torch {row['told']['versions']['torch']}" for row in rows.values()
             if row["state"] == "done" and not row.get("small") and "device" in row.get("told", {})}  # fmt: skip
    lines += ["", f"Measured on {'; '.join(sorted(cards))}."] if cards else []
    return "\n".join(lines) + "\n"


def render(document: str, rows: dict[str, dict[str, Any]]) -> str:
    """The document with the table between its two marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}{END}{after}"


def figures(script: str, told: dict[str, Any]) -> Iterator[str]:
    """What a row found, a line each."""
    if script == "pytest":
        yield f"{told['passed']} passed, {told['skipped']} skipped, {len(told['failed'])} failed"
        yield from (f"failed: {name}: {problem}" for name, problem in told["failed"].items())
    elif script == "rollout.py":
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


def prepare() -> None:
    """Wheels that Python imports without installing them."""
    command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(WHEELS), *CARRIED]
    subprocess.run([sys.executable, "-m", *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--folder", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--peers", type=Path, help="interpreter with trl and liger-kernel")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds of all rows together")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--prepare", action="store_true", help=f"download {', '.join(CARRIED)} into {WHEELS.name}/")
    parser.add_argument("--render", action="store_true", help=f"write the table of {KEPT.name} into {DOCS.name}")
    asked = parser.parse_args()
    if asked.prepare:
        prepare()
        return
    if asked.render:
        DOCS.write_text(render(DOCS.read_text(), json.loads(KEPT.read_text()) if KEPT.exists() else {}))
        return
    if not asked.small:
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: no GPU here\nhint: --small tries the same commands on the CPU")
    results, ends = Results(asked.folder), time.monotonic() + asked.budget
    for name in asked.only:
        if results.rows.get(name, {}).get("state") == "done":
            continue
        left = ends - time.monotonic()
        least, most = ROWS[name].seconds(asked.small)
        if left < least:
            results.keep(name, {"state": "not measured: no time was left"}, "")
            continue
        results.keep(name, *run(name, asked, min(most, left)))
    print(table(results.rows) if not asked.small else "\n".join(_states(results.rows)))
    states = [results.rows[name]["state"] for name in asked.only]
    sys.exit(0 if all(state.startswith(("done", "skipped")) for state in states) else 1)


def _states(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, row in rows.items():
        yield f"{name}: {row['state']}; {'; '.join(row.get('figures', []))}"


if __name__ == "__main__":
    main()
