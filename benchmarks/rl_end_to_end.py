"""Whole GRPO steps with a search tool beside TRL's: `python benchmarks/rl_end_to_end.py [--json FILE]`.

A step is rollouts with searches, exact match as reward, advantages within groups of 8, and one AdamW update of a
token-mean GRPO loss; float32 on the CPU, one thread. Both sides start from the same model of the offline world, which
learned to search from scripted episodes, and get the same questions in the same order (one or two searches, then an
answer), the same limits, temperature 1, and one BM25 index in their own process. What they sample differs by chance, so
tokens and searches are counted and told.

- `dgpo trainer`: what `dgpo rl --method grpo` runs. It reads every episode once more before the update, for the
  log-probabilities of the policy that wrote it, which GRPOTrainer leaves out by default.
- `dgpo engine`: with `-o behavior_logprobs=engine`, without that pass.
- `trl MICRO`: GRPOTrainer with `tools=[search]` on transformers' `generate`, MICRO sequences per training pass. A turn
  ends at the closing tag of a search or an answer, each one token here, as an end-of-sequence token; a response
  template makes a search a tool call.
- `trl-cb MICRO` (with --continuous): the same on transformers' continuous batching, sized for a CPU.

Every run is a process of its own; repetitions are interleaved, medians of steps and then of runs are told; a first step
is not counted. Phases are CPU time. `make bench-step` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rl_end_to_end_sides import MICRO_TOKENS, dgpo, rollout_settings, trl


def prepare(folder: Path, size: str, steps: int) -> None:
    """World, index and a model that searches; nothing if they are there."""
    from dataclasses import asdict

    import torch
    from transformers import Qwen2ForCausalLM

    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.formats.tags import TINYWORLD
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import save_model
    from dgpo_cli.offline.demonstrations import write_demonstrations
    from dgpo_cli.offline.world.demonstrator import Demonstrator, Fault
    from dgpo_cli.offline.world.files import write_world
    from dgpo_cli.offline.world.sizes import STUDENT, TEACHER, qwen2_config
    from dgpo_cli.offline.world.tokenizer import build_tokenizer
    from dgpo_cli.offline.world.world import build_world
    from dgpo_cli.retrieval.index.build import build_index
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.training.kd import run_kd
    from dgpo_cli.training.settings import KDSettings

    if (folder / f"{size}-warm" / "best").is_dir():
        return
    torch.set_num_threads(1)
    world = build_world()
    write_world(world, folder / "world")
    build_index(folder / "world" / "corpus.jsonl", folder / "index", overwrite=True)
    codec = Codec(build_tokenizer(), TINYWORLD)
    write_demonstrations(
        Demonstrator(world, Fault({})),
        world.questions["demonstrations"][:6_000],
        folder / "demonstrations.jsonl",
        codec=codec,
        retriever=open_index(folder / "index").retriever,
        settings=rollout_settings(wave=128),
    )
    torch.manual_seed(0)
    start = Qwen2ForCausalLM(qwen2_config({"student": STUDENT, "teacher": TEACHER}[size], codec.vocabulary_size))
    save_model(folder / size, start, codec.tokenizer, TINYWORLD)
    settings = KDSettings(
        student=str(folder / size),
        teacher=str(folder / size),
        trajectories=str(folder / "demonstrations.jsonl"),
        method="seqkd",
        steps=steps,
        lr=5e-3,
        warmup_steps=20,
        beta2=0.98,
        eval_every=steps,
        micro_batch_tokens=MICRO_TOKENS,
        device="cpu",
    )
    with RunDir.open("kd", asdict(settings), out=folder / f"{size}-warm") as run:
        run_kd(settings, run, keep=1, progress=None)


def measure(name: str, folder: Path, size: str, episodes: int, steps: int) -> dict[str, Any]:
    """Medians over the steps after the first."""
    side, _, variant = name.partition(" ")
    if side == "dgpo":
        rows = dgpo(folder, size, episodes, steps + 1, variant)
    else:
        rows = trl(folder, size, episodes, steps + 1, int(variant), continuous=side == "trl-cb")
    medians = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
    return medians | {"steps": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=("student", "teacher"), default="student", help="of the offline world")
    parser.add_argument("--episodes", type=int, nargs="+", default=[64, 256], help="a step")
    parser.add_argument("--micro", type=int, nargs="+", default=[8, 64], help="TRL's per_device_train_batch_size")
    parser.add_argument("--continuous", action="store_true", help="TRL on continuous batching too")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=500, help="supervised steps that teach the model to search")
    parser.add_argument("--folder", type=Path, help="keeps world, index and model; made anew elsewhere by default")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "EPISODES"))
    options = parser.parse_args()
    if options.one:
        name, episodes = options.one
        print(json.dumps(measure(name, options.folder, options.model, int(episodes), options.steps)))
        return
    with tempfile.TemporaryDirectory() as made:
        options.folder = options.folder or Path(made)
        prepare(options.folder, options.model, options.warm_up)
        report(compare(options), options)


def compare(options: argparse.Namespace) -> dict[int, dict[str, list[dict[str, Any]]]]:
    names = ["dgpo trainer", "dgpo engine", *(f"trl {micro}" for micro in options.micro)]
    if options.continuous:
        names.append(f"trl-cb {options.micro[-1]}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    given = ["--folder", str(options.folder), "--model", options.model, "--steps", str(options.steps)]
    runs: dict[int, dict[str, list[dict[str, Any]]]] = {n: {name: [] for name in names} for n in options.episodes}
    for episodes, of_size in runs.items():
        for _ in range(options.repetitions):
            for name, rows in of_size.items():
                command = [sys.executable, __file__, "--one", name, str(episodes), *given]
                ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if ended.returncode:
                    sys.exit(f"{name}, {episodes} episodes: {ended.stderr}")
                rows.append(json.loads(ended.stdout.splitlines()[-1]))
                told = {key: value for key, value in rows[-1].items() if key != "steps"}
                print(episodes, name, json.dumps(told), file=sys.stderr)
    return runs


def report(runs: dict[int, dict[str, list[dict[str, Any]]]], options: argparse.Namespace) -> None:
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    machine |= {name: version(name) for name in ("torch", "transformers", "trl")}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine |= {"model": options.model, "commit": head.stdout.strip()}
    if options.json is not None:
        options.json.write_text(json.dumps({**machine, "runs": runs}, indent=1) + "\n")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    counts = ["written tokens/s", "written", "searches", "EM"]
    phases = ["seconds", "CPU seconds", "rollout", "of it search", "scoring", "update"]
    columns = ["episodes a step", "side", "episodes/s", *counts, *phases, "times (CPU)"]
    print(f"\n| {' | '.join(columns)} |\n|--:|---|{'--:|' * (len(columns) - 2)}")
    for episodes, of_size in runs.items():
        medians = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "steps"}
            for name, rows in of_size.items()
        }
        for name, m in medians.items():
            cells = [f"{episodes / m['seconds']:.0f}", f"{m['written'] / m['seconds']:.0f}"]
            cells += [f"{m['written']:.0f}", f"{m['searches']:.0f}", f"{m['em']:.2f}"]
            cells += [f"{m[key]:.3f}" for key in ("seconds", "cpu_seconds", "rollout", "search", "scoring", "update")]
            cells.append(f"{m['cpu_seconds'] / medians['dgpo engine']['cpu_seconds']:.1f}")
            print(f"| {episodes} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
