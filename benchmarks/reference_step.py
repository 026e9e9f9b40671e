"""Steps of the reference recipe as `dgpo rl` runs them: seconds by phase, memory, hours of a thousand.

    python benchmarks/reference_step.py                         on a GPU: Qwen2.5-0.5B under a 3B, 512 episodes
    python benchmarks/reference_step.py --student tiny --teacher tiny-teacher --work tiny --episodes 8 --device cpu

Settings are those of a recipe; `-o key=value` changes them as in the command. Weights are random with the true
configuration, and turns end where forced.py says: a prompt of 300 tokens, three searches with 500 tokens each, turns of
50 to 150, two in five answers right (the teacher reads the others). Rollouts, rewards, log-probabilities, advantages
and updates are the program's; evaluation and saving are left out. Each teacher is a process of its own, whose first
step warms up; medians of the others are told. Prints a table on stderr and a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

TEACHERS = ("16 bit", "8 bit")
STEPS, EPISODES, TARGET_HOURS = 1_000, 512, 24.0  # of the reference; the target is ours
PHASES = ("rollout", "search", "signals", "student and critic", "teacher", "update", "step")


class Enough(BaseException):
    """All steps are measured: what comes next would be evaluation and saving."""


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    import forced
    import torch
    from machine import Peak, about, synchronize

    from dgpo_cli.core.progress import Steps
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.devices import inference_dtype
    from dgpo_cli.models.load import LoadedModel, load_model, save_model
    from dgpo_cli.models.sources import ModelSource
    from dgpo_cli.training import rl, signals
    from dgpo_cli.training.assemble import assemble
    from dgpo_cli.training.run import lifecycle
    from dgpo_cli.training.run.open_run import OpenRun

    device = torch.device(asked.device)
    work, settings = forced.WORKS[asked.work], settings_of(asked)
    words = forced.tokenizer_for(asked.student)

    def loaded(name: str, dtype: torch.dtype, seed: int) -> LoadedModel:
        model = forced.model_of(name, device, dtype, len(words), seed)
        return LoadedModel(model, words, work.protocol, ModelSource(name, name, local=True), True)

    student = loaded(asked.student, torch.float32, 0)  # float32 as the command loads it: bf16 is autocast
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.one == "8 bit":
            made = loaded(asked.teacher, inference_dtype(device), 1)
            save_model(folder / "teacher", made.model, made.tokenizer, made.protocol)
            del made  # its memory is not the 8-bit teacher's
            dtype = inference_dtype(device)
            teacher = load_model(str(folder / "teacher"), device=device, dtype=dtype, eight_bit=True)
        else:
            teacher = loaded(asked.teacher, inference_dtype(device), 1)
        search = forced.retriever(folder, asked.index, asked.passages)
        questions = forced.questions(work, Codec(words, work.protocol), settings.batch_size)
        seconds = {"student and critic": 0.0, "teacher": 0.0}
        marks: list[dict[str, float]] = []

        def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            def run(*given: Any) -> Any:
                synchronize(device)
                started = time.perf_counter()
                result = function(*given)
                synchronize(device)
                seconds[name] += time.perf_counter() - started
                return result

            return run

        signals._of_student = timed(signals._of_student, "student and critic")
        signals.logprobs = timed(signals.logprobs, "teacher")
        lifecycle.check_space = lambda *_: None  # nothing is saved

        with forced.forced(work) as engine, RunDir.open("rl", asdict(settings), out=folder / "run") as run:

            def progress(done: int, _: int, note: str = "") -> None:
                marks.append({"search": search.seconds, "tokens": engine.written} | seconds)
                print(f"{asked.one}: {done} of {asked.steps} steps", file=sys.stderr, flush=True)
                if done >= asked.steps:
                    raise Enough

            peak = Peak(device)
            with suppress(Enough):
                opened = OpenRun(
                    run, progress=Steps(progress), say=lambda line: print(line, file=sys.stderr, flush=True)
                )
                material = rl.Questions.of(settings, questions, questions[:1])
                assemble(settings, opened, material, student, teacher, search)
            lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "seconds_rollout" in row]
        return about(device) | {"memory": peak.bytes(), "search": search.name} | summary(rows, marks)


def settings_of(asked: argparse.Namespace) -> Any:
    import forced

    from dgpo_cli.core import recipes
    from dgpo_cli.core.config import apply_options, parse_options
    from dgpo_cli.training.settings import RLSettings

    work = forced.WORKS[asked.work]
    given: dict[str, Any] = {"index": "bench", "questions": "bench", "device": asked.device}
    given |= {"student": asked.student, "teacher": asked.teacher, "teacher_8bit": asked.one == "8 bit"}
    given |= {"batch_size": asked.episodes, "steps": STEPS}
    if lengths := work.rollout():
        given["rollout"] = lengths
    table = recipes.merged(recipes.load(asked.recipe).stages["rl"], given)
    return apply_options(RLSettings, recipes.merged(table, parse_options(asked.options)))


def summary(rows: list[dict[str, float]], marks: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the steps after the first, which warms up where there is another."""
    marks = [dict.fromkeys(marks[0], 0.0), *marks[-len(rows) :]]
    steps = []
    for row, before, after in zip(rows, marks, marks[1:], strict=False):
        spent = {name: after[name] - before[name] for name in after}
        step = {"rollout": row["seconds_rollout"], "search": spent["search"], "signals": row["seconds_signals"]}
        step |= {name: spent[name] for name in ("student and critic", "teacher")}
        step |= {"update": row["seconds_update"], "tokens": spent["tokens"]}
        step["step"] = step["rollout"] + step["signals"] + step["update"]
        step |= {"reward": row["reward"], "searches": row["searches"], "episode_tokens": row["tokens"]}
        steps.append(step)
    counted = steps[1:] or steps
    median = {name: statistics.median(step[name] for step in counted) for name in counted[0]}
    return {
        "seconds": {name: round(median[name], 3) for name in PHASES},
        "tokens_per_s": round(median["tokens"] / median["rollout"], 1),
        "reward": median["reward"],
        "searches": median["searches"],
        "episode_tokens": median["episode_tokens"],
        "steps": steps,
    }


def hours(seconds: float, episodes: int) -> float:
    """Of a thousand steps of 512 episodes, from a step of `episodes`."""
    return STEPS * seconds * EPISODES / episodes / 3600


def table(found: dict[str, dict[str, Any]], episodes: int) -> str:
    lines = ["| teacher | " + " | ".join(f"{p}, s" for p in PHASES) + " | tokens/s | memory | 1,000 steps of 512 |"]
    lines.append("|---" + "|--:" * (len(PHASES) + 3) + "|")
    for name, row in found.items():
        if "error" in row:
            lines.append(f"| {name} | not measured: {row['error']} |" + " |" * (len(PHASES) + 2))
            continue
        figures = " | ".join(f"{row['seconds'][phase]:.2f}" for phase in PHASES)
        memory = max(row["memory"].values()) / 1e9
        lines.append(f"| {name} | {figures} | {row['tokens_per_s']:,.0f} | {memory:.2f} GB | {row['hours']:.1f} h |")
    note = "" if episodes == EPISODES else f"; hours are scaled from {episodes} episodes"
    return "\n".join([*lines, f"Target: under {TARGET_HOURS:.0f} h on one H200; the reference: 8 GPUs, a day{note}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="qwen3b-0.5b-80gb")
    parser.add_argument("--student", default="qwen-0.5b", help="a true size, or tiny")
    parser.add_argument("--teacher", default="qwen-3b", help="a true size, or tiny-teacher")
    parser.add_argument(
        "--work", default="reference", help="reference or tiny: lengths of prompts, turns, observations"
    )
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted where there are more")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--index", help="index folder or server; BM25 over generated passages by default")
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=TEACHERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in asked.teachers:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        ended = subprocess.run(command, capture_output=True, text=True)
        sys.stderr.write(ended.stderr)
        if ended.returncode:
            found[name] = {"error": (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]}
            continue
        row = json.loads(ended.stdout.splitlines()[-1])
        found[name] = row | {"hours": round(hours(row["seconds"]["step"], asked.episodes), 3)}
    told = {"work": asked.work, "student": asked.student, "teacher": asked.teacher, "episodes": asked.episodes}
    told |= {"recipe": asked.recipe, "options": asked.options, "target_hours": TARGET_HOURS, "rows": found}
    print(table(found, asked.episodes), file=sys.stderr)
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    sys.exit(1 if all("error" in row for row in found.values()) else 0)


if __name__ == "__main__":
    main()
