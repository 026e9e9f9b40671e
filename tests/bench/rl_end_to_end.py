"""Whole GRPO steps with a search tool beside TRL's: `python tests/bench/rl_end_to_end.py [--json FILE]`.

A step is rollouts with searches, exact match as reward, advantages within groups, and one AdamW update of a token-mean
GRPO loss; float32 on the CPU, one thread. Both sides start from the same student of the offline world, which learned to
search from scripted episodes, and get the same two-hop questions in the same order (two searches and an answer as a
rule), the same limits, temperature 1, and one BM25 index in their own process. What they sample differs, so the tokens
that were written are counted and told.

- `dgpo`: what `dgpo rl --method grpo` runs. It reads every episode once more before the update, for the log-probabilities
  of the policy that wrote it, which GRPOTrainer leaves out by default.
- `trl`: GRPOTrainer with `tools=[search]`, on transformers' `generate`. A turn ends at the closing tag of a search or an
  answer, which are tokens of this tokenizer, as an end-of-sequence token; a response template makes a search a tool call.
- `trl-cb`: the same on transformers' continuous batching, sized for a CPU.

Every run is a process of its own; repetitions are interleaved, medians of steps and then of runs are told. A first step
is not counted. TRL runs at each of --micro sequences per pass, dgpo at its default budget of tokens (`make bench-step`).
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
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

GROUP, TOP_K, MAX_SEARCHES, TURN_TOKENS, MAX_TOKENS, LR = 8, 2, 2, 32, 256, 1e-6
TURN_ENDS = ("</search>", "</answer>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{{ message.content + '\n' }}"
    "{%- elif message.role == 'tool' -%}{{ '<information>' + message.content + '</information>' }}"
    "{%- else -%}{{ message.content }}{%- for call in message.tool_calls or [] -%}"
    "{{ '<search>' + call.function.name + ' ' + call.function.arguments | tojson + '</search>' }}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"\?\n|</information>",  # what a turn comes after
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<search>",
            "close": "</search>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "search", "arguments": {"query": "{content}"}}},
        },
        "content": {"content": "text"},
    },
}


class Clock:
    """CPU seconds by name, of calls that were wrapped; the process has one thread, and other work may share its core."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

        return call

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken


class TimedRetriever:
    def __init__(self, folder: Path, clock: Clock) -> None:
        from dgpo_cli.retrieval.open import open_index

        self.search = clock.timed("search", open_index(folder / "index").retriever.search)


def prepare(folder: Path, size: str, steps: int) -> None:
    """World, index and a model that searches; nothing if they are there."""
    from dataclasses import asdict

    import torch
    from transformers import Qwen2ForCausalLM

    from dgpo_cli.core.protocol import TINYWORLD
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import save_model
    from dgpo_cli.pipelines.demonstrations import write_demonstrations
    from dgpo_cli.pipelines.kd import run_kd
    from dgpo_cli.pipelines.settings import KDSettings
    from dgpo_cli.retrieval.build import build_index
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.tinyworld.demonstrations import Demonstrator, Fault
    from dgpo_cli.tinyworld.files import write_world
    from dgpo_cli.tinyworld.sizes import STUDENT, TEACHER, qwen2_config
    from dgpo_cli.tinyworld.tokenizer import build_tokenizer
    from dgpo_cli.tinyworld.world import build_world

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
        micro_batch_tokens=2_600,
        device="cpu",
    )
    with RunDir.open("kd", asdict(settings), out=folder / f"{size}-warm") as run:
        run_kd(settings, run, keep=1, progress=None)


def rollout_settings(wave: int) -> Any:
    from dgpo_cli.rollout.settings import RolloutSettings

    return RolloutSettings(
        max_turns=MAX_SEARCHES, top_k=TOP_K, max_new_tokens=TURN_TOKENS, max_tokens=MAX_TOKENS, wave=wave
    )


def load(folder: Path, size: str) -> tuple[Any, Any, list[Any]]:
    """Model, codec and questions."""
    import torch

    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_model
    from dgpo_cli.qa_sets import read_questions

    torch.set_num_threads(1)
    loaded = load_model(str(folder / f"{size}-warm" / "best"), device=torch.device("cpu"))
    questions = read_questions(folder / "world" / "train.jsonl")
    return loaded.model, Codec(loaded.tokenizer, loaded.protocol), questions


def dgpo(folder: Path, size: str, episodes: int, steps: int) -> list[dict[str, float]]:
    from dgpo_cli.objectives import registry
    from dgpo_cli.pipelines.agents import Agent, team
    from dgpo_cli.rewards import registry as rewards
    from dgpo_cli.train import loop
    from dgpo_cli.train.learner import Learner, Optimizer, OptimizerSettings
    from dgpo_cli.train.source import Rollouts
    from dgpo_cli.train.world import ALONE

    model, codec, questions = load(folder, size)
    clock = Clock()
    grpo = {"reduction": "tokens", "kl_coef": 0.0, "entropy_coef": 0.0}  # GRPOTrainer's loss
    learner = Learner(
        objective=registry.create("grpo", grpo),
        codec=codec,
        student=model,
        policy_optimizer=Optimizer(model, OptimizerSettings(LR), steps),
    )
    reward = clock.timed("reward", rewards.weighted({"em": 1.0}))
    agent = Agent.of(model, codec, TimedRetriever(folder, clock), rollout_settings(episodes), reward=reward)
    source = Rollouts(questions, episodes // GROUP, 0, roll=team(agent, ALONE), samples=GROUP)
    source.next = clock.timed("rollout", source.next)
    loop.samples_of = clock.timed("signals", loop.samples_of)
    rows = []
    for step in range(steps):
        started, cpu = time.perf_counter(), time.process_time()
        metrics = loop.run_step(learner, source, loop.Plan(steps), step)
        taken, seconds = time.process_time() - cpu, clock.take()
        rows.append(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": taken,
                "rollout": seconds["rollout"] - seconds["reward"],
                "search": seconds["search"],
                "scoring": seconds["signals"] + seconds["reward"],
                "update": taken - seconds["rollout"] - seconds["signals"],
                "written": episodes * metrics["written_tokens"],
                "read": episodes * (metrics["tokens"] - metrics["written_tokens"]),
                "searches": episodes * metrics["searches"],
                "em": metrics["em"],
            }
        )
    return rows


def trl(
    folder: Path, size: str, episodes: int, steps: int, micro: int, continuous: bool = False
) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from dgpo_cli.core.protocol import escape_tags, parse_turn, render_results
    from dgpo_cli.core.text import exact_match
    from dgpo_cli.train.source import draw

    model, codec, questions = load(folder, size)
    tokenizer = codec.tokenizer
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(TURN_ENDS))
    clock = Clock()
    retriever = TimedRetriever(folder, clock)

    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.

        Returns:
            The passages that were found.
        """
        hits = retriever.search([query], TOP_K)[0]
        return escape_tags(render_results([hit.passage for hit in hits]))[0]

    marked: list[float] = []

    def em(completions: list[list[dict[str, Any]]], answers: list[list[str]], **_: Any) -> list[float]:
        turns = [parse_turn(completion[-1]["content"]) for completion in completions]
        right = [
            float(turn.action == "answer" and exact_match(turn.content, gold))
            for turn, gold in zip(turns, answers, strict=True)
        ]
        marked.append(statistics.mean(right))
        return right

    rows: list[dict[str, float]] = []
    counts: dict[str, float] = {}

    class Steps(TrainerCallback):
        started = cpu = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = clock.take()
            now, cpu = time.perf_counter(), time.process_time()
            rows.append(
                {
                    "seconds": now - self.started,
                    "cpu_seconds": cpu - self.cpu,
                    "rollout": seconds["rollout"],
                    "search": seconds["search"],
                    "generate": seconds["generate"],
                    "scoring": seconds["inputs"] - seconds["rollout"],
                    "update": cpu - self.cpu - seconds["inputs"],
                    **counts,
                    "em": marked[-1],
                }
            )
            self.started, self.cpu = now, cpu

    def counted(generate: Any) -> Any:
        def call(prompts: list[Any]) -> Any:
            made = generate(prompts)
            written = sum(map(sum, made[2]))
            searches = sum(message["role"] == "tool" for completion in made[3] for message in completion)
            counts.update(written=written, read=sum(map(len, made[0] + made[1])) - written, searches=searches)
            return made

        return call

    drawn = [q for step in range(steps) for q, _ in draw(questions, episodes // GROUP, step, 0)]
    prompts = [[{"role": "user", "content": codec.protocol.render_prompt(q.text)[0].strip()}] for q in drawn]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=em,
        tools=[search],
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts, "answers": [list(q.answers) for q in drawn]}),
        callbacks=[Steps()],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=episodes // micro,
            num_generations=GROUP,
            max_completion_length=MAX_TOKENS - len(codec.prompt_ids(drawn[0].text).ids),
            max_tool_calling_iterations=MAX_SEARCHES,
            generation_kwargs={"max_new_tokens": TURN_TOKENS},
            use_transformers_continuous_batching=continuous,
            transformers_continuous_batching_config=cpu_pages(episodes) if continuous else None,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    passages = [hit.passage for hit in retriever.search([questions[0].supporting_titles[0]], TOP_K)[0]]
    require_same_text(trainer, codec, questions[0], passages, search(questions[0].supporting_titles[0]))
    clock.take()
    trainer._generate = counted(clock.timed("rollout", trainer._generate))
    trainer._generate_single_turn = clock.timed("generate", trainer._generate_single_turn)
    trainer._generate_and_score_completions = clock.timed("inputs", trainer._generate_and_score_completions)
    trainer.train()
    return rows


def cpu_pages(episodes: int) -> dict[str, int]:
    return {"page_size": 16, "num_blocks": episodes * (MAX_TOKENS // 16 + 2), "max_batch_tokens": 1_024}


def require_same_text(trainer: Any, codec: Any, question: Any, passages: list[Any], text: str) -> None:
    """Both sides must read the same tokens, or they do not do the same work."""
    user = [{"role": "user", "content": codec.protocol.render_prompt(question.text)[0].strip()}]
    prompt = trainer._tokenize_prompts([user])[0][0]
    assert prompt == list(codec.prompt_ids(question.text).ids), f"another prompt: {prompt}"
    observation = trainer._get_tool_suffix_ids([{"role": "tool", "name": "search", "content": text}])
    assert observation == list(codec.observation_ids(passages, MAX_TOKENS).ids), f"another observation: {observation}"


def measure(name: str, folder: Path, size: str, episodes: int, steps: int) -> dict[str, Any]:
    """Medians over the steps after the first."""
    side, _, micro = name.partition(" ")
    if side == "dgpo":
        rows = dgpo(folder, size, episodes, steps + 1)
    else:
        rows = trl(folder, size, episodes, steps + 1, int(micro), continuous=side == "trl-cb")
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
    names = ["dgpo", *(f"trl {micro}" for micro in options.micro)]
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
    if options.json is not None:
        options.json.write_text(json.dumps({**machine, "model": options.model, "runs": runs}, indent=1) + "\n")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        "\n| episodes a step | side | episodes/s | written tokens/s | written | searches | EM | seconds | CPU seconds "
        "| rollout (its searches) | scoring | update | times |\n|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for episodes, of_size in runs.items():
        medians = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "steps"}
            for name, rows in of_size.items()
        }
        for name, m in medians.items():
            print(
                f"| {episodes} | {name} | {episodes / m['seconds']:.1f} | {m['written'] / m['seconds']:.0f} "
                f"| {m['written']:.0f} | {m['searches']:.0f} | {m['em']:.2f} | {m['seconds']:.2f} | {m['cpu_seconds']:.2f} "
                f"| {m['rollout']:.2f} ({m['search']:.2f}) | {m['scoring']:.2f} | {m['update']:.2f} "
                f"| {m['seconds'] / medians['dgpo']['seconds']:.1f} |"
            )


if __name__ == "__main__":
    main()
