"""Planned beside measured memory of whole commands with a real model: `python benchmarks/plan_memory_real.py MODEL
TRAJECTORIES QUESTIONS INDEX [NAME ...]`.

Each command runs in a process of its own for one step on the CPU. Planned is what its start counts with the settings as
they are, measured the highest resident memory (VmHWM), mapped files included. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_SIZES = ("-o", "micro_batch_tokens=1024", "-o", "chunk_tokens=256", "-o", "rollout.wave=4")
_SHORT = ("-o", "rollout.max_tokens=1024", "-o", "rollout.max_new_tokens=60", "-o", "rollout.max_turns=2")
_SHORT += ("-o", "rollout.max_observation_tokens=130", "-o", "save_every=0", "-o", "eval_every=0")
CASES = {
    "seqkd": ("kd", "--method", "seqkd", "--batch-size", "4"),
    "kd": ("kd", "--method", "kd", "--batch-size", "4"),
    "ppo": ("rl", "--method", "ppo", "--batch-size", "4", *_SHORT),
    "dgpo": ("rl", "--method", "dgpo", "--batch-size", "4", *_SHORT),
}


def child() -> None:
    """Run the command that follows, with what its start counted and what it took in the file before it."""
    import atexit

    from dgpo_cli.training.sizes import memory
    from dgpo_cli.training.sizes.job import Job

    counted: list[dict[str, float]] = []
    in_process = memory.in_process

    def listening(job: Job) -> dict[str, float]:
        counted.append(in_process(job))
        return counted[-1]

    memory.in_process = listening

    def tell() -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        Path(sys.argv[2]).write_text(json.dumps({"measured": peak, "parts": counted[-1]}))

    atexit.register(tell)
    from dgpo_cli.cli import main

    main(sys.argv[3:])


def main() -> None:
    if sys.argv[1] == "--child":
        child()
        return
    model, trajectories, questions, index, *names = (*(str(Path(a).absolute()) for a in sys.argv[1:5]), *sys.argv[5:])
    print("| command | planned | measured | planned / measured | largest parts |\n|---|---|---|---|---|")
    for name in names or CASES:
        command, *options = CASES[name]
        data = ("--data", trajectories) if command == "kd" else ("--data", questions, "--index", index)
        with tempfile.TemporaryDirectory() as folder:
            argv = [command, *options, "--student", model, "--teacher", model, *data, *_SIZES, "--steps", "1"]
            argv += ["--device", "cpu", "--quiet", "--out", "run"]
            ended = subprocess.run(
                [sys.executable, str(Path(__file__).absolute()), "--child", "told.json", *argv],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if ended.returncode:
                sys.exit(f"{name}: {ended.stderr}")
            told = json.loads((Path(folder) / "told.json").read_text())
        planned = sum(told["parts"].values())
        largest = sorted(told["parts"].items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in largest)
        measured = told["measured"]
        print(f"| {name} | {planned / 1e9:.2f} GB | {measured / 1e9:.2f} GB | {planned / measured:.2f} | {shown} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
