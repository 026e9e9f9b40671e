"""Multi-turn rollouts beside transformers: `python benchmarks/rollout.py [--work tiny|reference] [--episodes 64 512]`.

One process, one model with random weights, the engines in turns. Every episode has a prompt, some turns and what is
read between them; random weights never end a turn, so its length is drawn once and is the same for every engine:

- `ours`: the engine of `dgpo`, where keys and values survive a turn and rows leave when their turn ends;
- `generate`: `model.generate` once per turn over all episodes, left-padded, the whole context read again each time, up
  to the longest turn of the batch, then cut (what the inference script of Search-R1 does);
- `continuous batching`: `model.init_continuous_batching`, one request per turn with its own length, the whole context
  sent again;
- `vllm`, where it is installed: its own engine behind the interface of `ours`. It takes most of a GPU for itself, so it
  is asked for by name and alone: `--engines vllm`.

Retrieval takes no time here. Prints a JSON object with episodes and generated tokens per second, medians of the rounds,
and their share of what the machine allows at most (roofline.py), by the bandwidth of a copy and the speed of a matrix
product that are measured first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import about, measured, synchronize, use_way
from roofline import bound, shape_of, steps
from transformers import GenerationConfig, Qwen2ForCausalLM

from dgpo_cli.engine.base import Engine, Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.turnwise.engine import TurnwiseEngine
from dgpo_cli.engine.turnwise.vllm import VLLMWriter, require_vllm
from dgpo_cli.errors import ConfigError

CPU_BATCH_TOKENS = 1024  # the best of 128, 256, 512 and 1,024 for continuous batching


@dataclass(frozen=True)
class Work:
    prompt: int
    turns: int
    read: int  # tokens of an observation
    shortest: int  # turn
    longest: int
    shared: int  # tokens that all prompts begin with

    def capacity(self) -> int:
        return self.prompt + self.turns * self.longest + (self.turns - 1) * self.read + 8


WORKS = {
    "tiny": Work(prompt=24, turns=3, read=30, shortest=6, longest=18, shared=8),
    "reference": Work(prompt=300, turns=4, read=500, shortest=50, longest=150, shared=200),
}


@dataclass
class Episode:
    prompt: list[int]
    reads: list[list[int]]
    length: int  # of each of its turns


class PlainCodec:
    """What engine and training ask of a tokenizer, where no text ends a turn."""

    pad_id = 0
    eos_ids: frozenset[int] = frozenset()

    def __init__(self, size: int) -> None:
        self.vocabulary_size = size

    def token_bytes(self, token_id: int) -> bytes:
        return b"a "


def episodes_of(work: Work, count: int, vocabulary: int) -> list[Episode]:
    chance = random.Random(f"episodes {count}")

    def ids(length: int) -> list[int]:
        return [chance.randrange(1, vocabulary) for _ in range(length)]

    begin = ids(work.shared)
    return [
        Episode(
            begin + ids(work.prompt - work.shared),
            [ids(work.read) for _ in range(work.turns - 1)],
            chance.randint(work.shortest, work.longest),
        )
        for _ in range(count)
    ]


_engines: dict[tuple[str, int], Engine] = {}  # made once, as in training


def ours(model: Qwen2ForCausalLM, episodes: list[Episode], work: Work) -> int:
    place = ("ours", len(episodes))
    if place not in _engines:
        codec = PlainCodec(model.config.vocab_size)
        _engines[place] = InProcessEngine(model, codec, slots=len(episodes), capacity=work.capacity())
    return driven(_engines[place], episodes)


def vllm(model: Qwen2ForCausalLM, episodes: list[Episode], work: Work) -> int:
    """The weights of `model`, read by vLLM from a folder; stop strings want a tokenizer beside them."""
    require_vllm()
    from forced import tokenizer

    place = ("vllm", 0)
    if place not in _engines:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer(model.config.vocab_size).save_pretrained(folder)
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            writer = VLLMWriter(folder, capacity=work.capacity(), dtype=dtype, seed=0)
        _engines[place] = TurnwiseEngine(writer, PlainCodec(model.config.vocab_size), capacity=work.capacity())
    return driven(_engines[place], episodes)


def driven(engine: Engine, episodes: list[Episode]) -> int:
    left, written = {}, 0
    for number, episode in enumerate(episodes):
        sampling = Sampling(1.0, episode.length, ("</search>", "</answer>"), key=str(number))
        left[engine.open(episode.prompt, sampling)] = list(episode.reads)
    while events := engine.step():
        for event in events:
            written += len(event.token_ids)
            if event.end is None:
                continue
            if left[event.slot]:
                engine.extend(event.slot, left[event.slot].pop(0))
            else:
                engine.close(event.slot)
    return written


def generate(model: Qwen2ForCausalLM, episodes: list[Episode], work: Work) -> int:
    texts, written = [list(e.prompt) for e in episodes], 0
    for turn in range(work.turns):
        width = max(map(len, texts))
        ids = torch.zeros((len(texts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, width - len(text) :] = torch.tensor(text)
            mask[row, width - len(text) :] = 1
        longest = max(e.length for e in episodes)
        config = GenerationConfig(
            max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None
        )
        with torch.no_grad():
            made = model.generate(
                ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            ).cpu()
        for row, episode in enumerate(episodes):
            texts[row] += made[row, width : width + episode.length].tolist()
            written += episode.length
            if turn < len(episode.reads):
                texts[row] += episode.reads[turn]
    return written


def continuous(model: Qwen2ForCausalLM, episodes: list[Episode], work: Work) -> int:
    written = 0
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=work.longest, eos_token_id=-1, pad_token_id=0)
    sizes = None
    if model.device.type == "cpu":  # its defaults are for GPUs: with them 64 episodes took more than five minutes here
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        pages = len(episodes) * (work.capacity() // 16 + 2)
        # The size of a block has another name from one release of transformers to the next.
        page = "page_size" if "page_size" in signature(ContinuousBatchingConfig).parameters else "block_size"
        sizes = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=CPU_BATCH_TOKENS, **{page: 16})
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=sizes
    ) as manager:
        texts, turns, owner = [list(e.prompt) for e in episodes], [0] * len(episodes), {}

        def ask(number: int) -> None:
            name = f"{number}-{turns[number]}"
            owner[name] = number
            manager.add_request(texts[number], request_id=name, max_new_tokens=episodes[number].length)

        for number in range(len(episodes)):
            ask(number)
        while owner:
            result = manager.get_result(timeout=120)
            if result is None:
                raise RuntimeError("continuous batching gave no result within two minutes")
            if result.error:
                raise RuntimeError(result.error)
            number = owner.pop(result.request_id)
            written += len(result.generated_tokens)
            texts[number] += list(result.generated_tokens)
            if turns[number] < len(episodes[number].reads):
                texts[number] += episodes[number].reads[turns[number]]
                turns[number] += 1
                ask(number)
    return written


ENGINES: dict[str, Callable[[Qwen2ForCausalLM, list[Episode], Work], int]] = {
    "ours": ours,
    "generate": generate,
    "continuous batching": continuous,
    "vllm": vllm,
}
BY_DEFAULT = [name for name in ENGINES if name != "vllm"]


def model_of(work: str, size: str, device: torch.device) -> Qwen2ForCausalLM:
    from dgpo_cli.models.random_init import random_model
    from dgpo_cli.offline.world.sizes import STUDENT, TEACHER, qwen2_config

    torch.manual_seed(0)
    if size in ("student", "teacher"):
        config = qwen2_config({"student": STUDENT, "teacher": TEACHER}[size], 636)
        config.max_position_embeddings = 4_096  # for episodes of the reference's length
        return Qwen2ForCausalLM(config).eval().to(device)
    return random_model(size, device=device, dtype=torch.bfloat16)


def timed(name: str, model: Qwen2ForCausalLM, work: Work, episodes: list[Episode]) -> dict[str, float]:
    expected = sum(e.length for e in episodes) * work.turns
    synchronize(model.device)
    wall, cpu = time.perf_counter(), time.process_time()
    written = ENGINES[name](model, episodes, work)
    synchronize(model.device)
    assert written == expected, f"{name} wrote {written} tokens, not {expected}"
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="tiny")
    parser.add_argument("--model", default="student", help="student, teacher, or a true size as qwen-0.5b")
    parser.add_argument("--episodes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=BY_DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", action="append", default=[], metavar="NAME=VALUE", help="a switch of models/ways.py")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for way in asked.way:
        use_way(way)
    work, device = WORKS[asked.work], torch.device(asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = model_of(asked.work, asked.model, device)
    dtype = next(model.parameters()).dtype
    machine, shape = measured(device, dtype), shape_of(model.config)
    rows = []
    for count in asked.episodes:
        episodes = episodes_of(work, count, model.config.vocab_size)
        passes = steps(
            [e.length for e in episodes], prompt=work.prompt, read=work.read, turns=work.turns, shared=work.shared
        )
        least = bound(shape, passes, machine, dtype.itemsize)
        rows.append(
            {
                "engine": "bound",
                "episodes": count,
                "episodes_per_s": round(count / least.seconds, 1),
                "tokens_per_s": round(least.tokens_per_s, 1),
                "bound_by_memory": round(least.memory_seconds / least.seconds, 3),
            }
        )
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in asked.engines}
        failed: dict[str, str] = {}
        for number in range(asked.rounds + 1):  # the first is a warm-up
            for name in asked.engines:
                if name in failed:
                    continue
                try:
                    row = timed(name, model, work, episodes)
                except ConfigError as error:  # not installed
                    failed[name] = error.message
                except Exception as error:  # a peer that does not run here is a result too
                    failed[name] = f"{type(error).__name__}: {error}"
                else:
                    taken[name] += [row] if number else []
        for name, rounds in taken.items():
            if name in failed:
                rows.append({"engine": name, "episodes": count, "failed": failed[name]})
            else:
                wall = statistics.median(r["wall"] for r in rounds)
                rows.append(
                    {
                        "engine": name,
                        "episodes": count,
                        "episodes_per_s": round(count / wall, 1),
                        "tokens_per_s": round(least.tokens / wall, 1),
                        "share_of_bound": round(least.seconds / wall, 4),
                        "cpu_s": round(statistics.median(r["cpu"] for r in rounds), 3),
                    }
                )
            print(json.dumps(rows[-1]), file=sys.stderr)
        _engines.pop(("ours", count), None)  # the caches of the next size may need the memory
    told = {"work": asked.work, "model": asked.model, "dtype": str(dtype).removeprefix("torch.")} | about(device)
    told |= {"bandwidth_gb_s": round(machine.bandwidth / 1e9, 2), "tflops": round(machine.flops / 1e12, 3)}
    told["rows"] = rows
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    sys.exit(1 if all("failed" in row for row in rows if row["engine"] != "bound") else 0)


if __name__ == "__main__":
    main()
