"""The two sides of `rl_end_to_end.py`: whole GRPO steps of dgpo and of TRL, one dict of counts and seconds a step."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

GROUP, TOP_K, MAX_SEARCHES, TURN_TOKENS, MAX_TOKENS, LR = 8, 2, 2, 32, 256, 1e-6
MICRO_TOKENS, CHUNK_TOKENS = 2_600, 1_024  # of dgpo's passes, as in the quickstart's recipe
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
    """CPU seconds by name, of calls that were wrapped: other work may share the core."""

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


def rollout_settings(wave: int) -> Any:
    from dgpo_cli.agent.settings import RolloutSettings

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


def dgpo(folder: Path, size: str, episodes: int, steps: int, behavior: str) -> list[dict[str, float]]:
    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.models.processes import ALONE
    from dgpo_cli.objectives import registry
    from dgpo_cli.rewards import registry as rewards
    from dgpo_cli.training import loop
    from dgpo_cli.training.learner import Learner, Optimizer
    from dgpo_cli.training.optimizer_settings import OptimizerSettings
    from dgpo_cli.training.run.validation import team
    from dgpo_cli.training.source import Rollouts

    model, codec, questions = load(folder, size)
    clock = Clock()
    grpo = {"reduction": "tokens", "kl_coef": 0.0, "entropy_coef": 0.0}  # GRPOTrainer's loss
    learner = Learner(
        objective=registry.create("grpo", grpo),
        codec=codec,
        student=model,
        policy_optimizer=Optimizer(model, OptimizerSettings(LR), steps),
        micro_batch_tokens=MICRO_TOKENS,
        chunk_tokens=CHUNK_TOKENS,
        engine_logprobs=behavior == "engine",
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

    from dgpo_cli.core.text import exact_match
    from dgpo_cli.formats.tags import TAGS
    from dgpo_cli.training.source import draw

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
        return TAGS.escape(TAGS.render_results([hit.passage for hit in hits]))[0]

    marked: list[float] = []

    def em(completions: list[list[dict[str, Any]]], answers: list[list[str]], **_: Any) -> list[float]:
        turns = [TAGS.parse(completion[-1]["content"]) for completion in completions]
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

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started, self.cpu = time.perf_counter(), time.process_time()

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
