"""GRPO steps of a real model beside TRL's: `python benchmarks/rl_real_model.py --model M --index I --questions Q`.

A step is rollouts with searches, exact match as reward, advantages within groups of 8, and one AdamW update of a
token-mean GRPO loss without a KL term, on one thread of a CPU. All sides start from the same cold start (see
`dgpo quickstart --real`), get the same first questions and the same index in their own process, run the same search
loop under the limits that the model was trained with, and sample at temperature 1; what they sample differs by chance,
so written tokens and searches are told too. TRL needs 7 GB for the model of 135M and 8 episodes.

- `dgpo`: `dgpo rl --method grpo`. It reads every episode once more for the log-probabilities of the policy that wrote
  it, which GRPOTrainer leaves out by default. `precision` is that of the setting.
- `trl`: GRPOTrainer with a `rollout_func` that writes each turn by transformers' `generate` for all open episodes at
  once, with the ends of a turn as `stop_strings`: the closing tags are several tokens of this tokenizer, so that they
  cannot be end-of-sequence tokens as in `rl_end_to_end.py`. `bf16` is autocast, in the rollouts too.

The sides are processes that run in turns of a few seconds, each stopped while another runs: on a shared machine a
second is worth less in one minute than in the next, for all sides alike then. CPU seconds from the end of the first
step on; the sides of one call lie in memory together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIDES = ("dgpo bf16", "dgpo float32", "trl bf16", "trl float32")
GROUP, LR = 8, 1e-6
TURN = 5.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder of a model that searches")
    parser.add_argument("--index", required=True)
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--episodes", type=int, default=16, help="a step")
    parser.add_argument("--steps", type=int, default=2, help="that are counted")
    parser.add_argument("--micro", type=int, default=8, help="TRL's per_device_train_batch_size")
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trl", choices=("bf16", "float32"), help="be this side, in this process")
    parser.add_argument("--told", type=Path, help="where that side tells its steps")
    options = parser.parse_args()
    if options.trl:
        trl(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(options, Path(folder))
    about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "transformers", "trl")}
    if options.json is not None:
        options.json.write_text(json.dumps(about | {"episodes": options.episodes, "rows": rows}, indent=1) + "\n")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("\n| side | CPU s a step | episodes | written | searches | right |\n|---|--:|--:|--:|--:|--:|")
    for side, row in rows.items():
        counts = " | ".join(f"{row[key]:.{digits}f}" for key, digits in (("written", 0), ("searches", 0), ("em", 2)))
        print(f"| {side} | {row['cpu_seconds']:.1f} | {options.episodes} | {counts} |")


class Side:
    """A side's process, stopped but in its turns, and its CPU seconds at the end of each step."""

    def __init__(self, command: list[str], folder: Path, steps: Path) -> None:
        self._steps, self._said = steps, folder / "said.txt"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=said, stderr=subprocess.STDOUT
            )
        self._process.send_signal(signal.SIGSTOP)
        self.cpu: list[float] = []

    def turn(self, wanted: int) -> bool:
        """Run for a few seconds; False once `wanted` steps are done, and the process ended."""
        self._process.send_signal(signal.SIGCONT)
        until = time.monotonic() + TURN
        while time.monotonic() < until and len(self.cpu) < wanted:
            time.sleep(0.1)
            if self._process.poll() is not None:
                sys.exit(f"a side ended early: {self._said.read_text()[-3000:]}")
            while len(self.cpu) < len(self.rows()):
                self.cpu.append(self._spent())
        if len(self.cpu) < wanted:
            self._process.send_signal(signal.SIGSTOP)
            return True
        self.end()
        return False

    def rows(self) -> list[dict[str, float]]:
        """What each step told of itself."""
        written = self._steps.read_text() if self._steps.exists() else ""
        lines = written.rpartition("\n")[0].splitlines()  # the last line may be on its way
        return [row for row in map(json.loads, lines) if "searches" in row]

    def _spent(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measured(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """By side, means over the steps after the first."""
    sides = {}
    for name in options.sides:
        own = folder / name.replace(" ", "-")
        own.mkdir()
        program, _, precision = name.partition(" ")
        sides[name] = (dgpo if program == "dgpo" else beside)(options, precision, own)
    waiting = dict(sides)
    try:
        while waiting:
            waiting = {name: side for name, side in waiting.items() if side.turn(options.steps + 1)}
    finally:
        for side in sides.values():
            side.end()
    rows = {}
    for name, side in sides.items():
        counted = side.rows()[1 : options.steps + 1]
        rows[name] = {
            "cpu_seconds": (side.cpu[options.steps] - side.cpu[0]) / options.steps,
            "written": statistics.mean(row["written_tokens"] for row in counted) * options.episodes,
            "searches": statistics.mean(row["searches"] for row in counted) * options.episodes,
            "em": statistics.mean(row["em"] for row in counted),
        }
    return rows


def dgpo(options: argparse.Namespace, precision: str, folder: Path) -> Side:
    settings = {
        "samples": GROUP,
        "mini_batches": 1,
        "warmup_steps": 0,
        "eval_every": 1000,
        "eval_limit": 1,
        "save_every": 1000,
        "keep_episodes": 0,
        "micro_batch_tokens": 2048,
        "precision": "auto" if precision == "bf16" else precision,  # bf16 where the processor has it
        "rollout.wave": options.episodes,
        "objective.reduction": "tokens",
        "objective.kl_coef": 0.0,
        "objective.entropy_coef": 0.0,
    }
    run = folder / "run"
    command = ["-m", "dgpo_cli", "rl", "--method", "grpo", "--student", options.model, "--index", options.index]
    command += ["--data", str(options.questions), "--batch-size", str(options.episodes // GROUP)]
    command += ["--steps", str(options.steps + 2), "--lr", str(LR), "--device", "cpu", "--quiet", "--out", str(run)]
    return Side([*command, *(f"-o{name}={value}" for name, value in settings.items())], folder, run / "metrics.jsonl")


def beside(options: argparse.Namespace, precision: str, folder: Path) -> Side:
    given = ["--model", options.model, "--index", options.index, "--questions", str(options.questions)]
    given += ["--episodes", str(options.episodes), "--steps", str(options.steps + 2), "--micro", str(options.micro)]
    told = folder / "steps.jsonl"
    return Side([__file__, "--trl", precision, "--told", str(told), *given], folder, told)


class GenerateWriter:
    """Turns by transformers' `generate`, all that are begun at once, left-padded, for `TurnwiseEngine`."""

    def __init__(self, model: Any, tokenizer: Any, pad_id: int) -> None:
        self.model, self.tokenizer, self.pad_id = model, tokenizer, pad_id
        self.begun: list[Any] = []

    def begin(self, turn: Any) -> None:
        self.begun.append(turn)

    def finished(self, wanted: Any) -> list[tuple[Any, Any]]:
        import torch

        from dgpo_cli.engine.base import TurnEnd
        from dgpo_cli.engine.turnwise.engine import Written

        turns, self.begun = self.begun, []
        longest = max(len(turn.token_ids) for turn in turns)
        padding = [longest - len(turn.token_ids) for turn in turns]
        ids = torch.tensor([[self.pad_id] * n + list(turn.token_ids) for n, turn in zip(padding, turns, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        with torch.no_grad():
            made = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(turn.max_new_tokens for turn in turns),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                stop_strings=list(turns[0].sampling.stop),
                tokenizer=self.tokenizer,
                pad_token_id=self.pad_id,
            )
        # The engine cuts what was written behind the end of a turn, padding included.
        return [
            (turn.slot, Written(row.tolist(), None, TurnEnd.LENGTH))
            for turn, row in zip(turns, made[:, longest:], strict=True)
        ]


def trl(options: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.engine.turnwise.engine import TurnwiseEngine
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_model
    from dgpo_cli.models.sources import search_limits
    from dgpo_cli.qa_sets import read_questions
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.training.source import draw

    torch.set_num_threads(1)
    steps, bf16 = options.steps, options.trl == "bf16"
    loaded = load_model(options.model, device=torch.device("cpu"))
    codec = Codec(loaded.tokenizer, loaded.protocol)
    limits, _ = search_limits(options.model)
    settings = RolloutSettings(**limits, wave=options.episodes)
    engine = TurnwiseEngine(
        GenerateWriter(loaded.model, loaded.tokenizer, codec.pad_id), codec, capacity=settings.max_tokens
    )
    agent = Agent(engine, codec, open_index(options.index).retriever, settings)
    questions = read_questions(options.questions)
    drawn = [q for step in range(steps) for q, _ in draw(questions, options.episodes // GROUP, step, 0)]
    by_text = {question.text: question for question in drawn}
    counts: dict[str, float] = {}

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        trainer.model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            done = list(agent.run([(by_text[text], number) for number, text in enumerate(prompts)]))
        trainer.model.train()
        starts = [len(codec.prompt_ids(text).ids) for text in prompts]
        counts.update(
            written_tokens=statistics.mean(t.num_written for t in done),
            searches=statistics.mean(len(t.searches) for t in done),
            em=statistics.mean(float(t.score is not None and t.score.correct) for t in done),
        )
        return {
            "prompt_ids": [list(t.token_ids[:start]) for t, start in zip(done, starts, strict=True)],
            "completion_ids": [list(t.token_ids[start:]) for t, start in zip(done, starts, strict=True)],
            "logprobs": None,
            "env_mask": [[int(w) for w in t.written[start:]] for t, start in zip(done, starts, strict=True)],
            "right": [float(t.score is not None and t.score.correct) for t in done],
        }

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            with options.told.open("a") as told:
                told.write(json.dumps(counts) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=loaded.model,
            reward_funcs=lambda right, **_: right,
            rollout_func=rollout,
            processing_class=loaded.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [question.text for question in drawn]}),
            callbacks=[Steps()],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=options.micro,
                gradient_accumulation_steps=options.episodes // options.micro,
                num_generations=GROUP,
                max_completion_length=settings.max_tokens,
                beta=0.0,
                learning_rate=LR,
                lr_scheduler_type="constant",
                weight_decay=0.01,
                shuffle_dataset=False,
                use_cpu=True,
                bf16=bf16,
                gradient_checkpointing=False,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
        )
        trainer.train()


if __name__ == "__main__":
    main()
