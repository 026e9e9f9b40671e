"""Real runs on models with random weights: what a model would write to end a turn is put in its place.

Random weights never end a turn. Here an engine of `dgpo` draws how long the turns of an episode are, lets the model
write them, and tells the last tokens as the tags of a search or an answer; all that follows from a turn is the
program's own. Tokenizers are made here, as large as the published ones, since the width of the vocabulary decides what
a loss costs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dgpo_cli.agent import agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import Hit, Passage, Question
from dgpo_cli.engine.base import Event, Sampling, SlotId
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import DEFAULT, TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.random_init import random_model
from dgpo_cli.models.shapes import SHAPES
from dgpo_cli.offline.world.sizes import STUDENT, TEACHER, qwen2_config
from dgpo_cli.retrieval.base import Retriever
from tiny import bpe_tokenizer

QWEN_TOKENS = 151_665  # of the tokenizer of Qwen2.5, whose models have 151,936 rows
TINY = {"tiny": STUDENT, "tiny-teacher": TEACHER}
GOLD = "yes"
PASSAGES, PASSAGE_WORDS = 20_000, 100


@dataclass(frozen=True)
class Work:
    """Episodes of one length distribution. Every turn of an episode is as long, drawn once for it."""

    protocol: Protocol
    prompt: int  # tokens
    searches: int
    read: int  # tokens of an observation, at most
    shortest: int  # turn
    longest: int
    right: float = 0.4  # share of answers that are correct: of the paper's student in training

    def rollout(self) -> dict[str, Any]:
        """Settings of `dgpo` that these lengths need, beside the recipe's."""
        return {} if self.read == RolloutSettings().max_observation_tokens else {"max_observation_tokens": self.read}

    def draw(self, key: str) -> tuple[int, bool]:
        chance = random.Random(f"turns {key}")
        return chance.randint(self.shortest, self.longest), chance.random() < self.right

    def text(self, key: str, turn: int) -> str:
        """What the last tokens of a turn say."""
        if turn < self.searches:
            asked = random.Random(f"query {key} {turn}")
            return f"<search>{word(asked.randrange(5_000))} {word(asked.randrange(5_000))}</search>"
        return f"<answer>{GOLD if self.draw(key)[1] else 'no'}</answer>"


WORKS = {
    "reference": Work(DEFAULT, prompt=300, searches=3, read=500, shortest=50, longest=150),
    "tiny": Work(TINYWORLD, prompt=24, searches=2, read=96, shortest=24, longest=36),
}


def word(number: int) -> str:
    letters = "bcdfglmnprst"
    return "".join(letters[number // 12**i % 12] + "aeiou"[(number + i) % 5] for i in range(3))


def tokenizer(size: int | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE without an end-of-text token, so that only a turn's length ends it; filled up to `size` tokens."""
    made = json.loads(bpe_tokenizer().backend_tokenizer.to_str())
    text = json.dumps(made)
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        text = text.replace(name, name.replace("|", "!"))
    made = json.loads(text)
    vocabulary = made["model"]["vocab"]
    for number in range(len(vocabulary), size or 0):
        vocabulary[f"zq{number}"] = number  # no merge leads there: text never has it, a random model writes it
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(made)))


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    return tokenizer(None if name in TINY else QWEN_TOKENS)


def model_of(name: str, device: torch.device, dtype: torch.dtype, tokens: int, seed: int = 0) -> PreTrainedModel:
    """`name` is a size of the paper's models, or one of the offline world's: tiny, tiny-teacher."""
    if name not in TINY:
        if name not in SHAPES:
            raise SystemExit(f"no model {name!r}: choose one of {', '.join([*SHAPES, *TINY])}")
        return random_model(name, device=device, dtype=dtype, seed=seed)
    torch.manual_seed(seed)
    config = qwen2_config(TINY[name], tokens)
    config.max_position_embeddings = 4_096
    return Qwen2ForCausalLM(config).eval().to(device, dtype)


def questions(work: Work, codec: Codec, count: int) -> list[Question]:
    """Their prompts have `work.prompt` tokens, or as many as the agent's text takes alone."""
    chance, made = random.Random("questions"), []
    for number in range(count):
        words = [str(number), *(word(chance.randrange(5_000)) for _ in range(4))]
        while len(codec.prompt_ids(" ".join([*words, "bo"])).ids) <= work.prompt:
            # Two characters are a token at least, so no prompt becomes longer than it should.
            words += ["bo"] * max(1, (work.prompt - len(codec.prompt_ids(" ".join(words)).ids)) // 3)
        made.append(Question(str(number), " ".join(words), (GOLD,), "bench"))
    return made


class Timed:
    """A retriever, and the seconds that its searches took."""

    def __init__(self, retriever: Retriever, name: str) -> None:
        self.retriever, self.name = retriever, name
        self.seconds, self.queries = 0.0, 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        started = time.perf_counter()
        found = self.retriever.search(queries, k)
        self.seconds += time.perf_counter() - started
        self.queries += len(queries)
        return found


class Drawn:
    """Passages at random, where no index can be built."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        chance = random.Random(queries[0])
        return [
            [Hit(passage, 1.0, rank) for rank, passage in enumerate(chance.sample(self.passages, k), start=1)]
            for _ in queries
        ]


def retriever(folder: Path, index: str | None, passages: int = PASSAGES) -> Timed:
    """An index or server that is named; else BM25 over generated passages, and passages at random without bm25s."""
    from dgpo_cli.retrieval.index.build import build_index
    from dgpo_cli.retrieval.open import open_index

    if index is not None:
        return Timed(open_index(index).retriever, index)
    chance = random.Random("passages")
    rows = [
        Passage(str(i), f'"{word(i)}"\n' + " ".join(word(chance.randrange(5_000)) for _ in range(PASSAGE_WORDS)))
        for i in range(passages)
    ]
    try:
        import bm25s  # noqa: F401 - what an index of words needs
    except ImportError:
        return Timed(Drawn(rows), "passages at random: bm25s is not installed")
    write_jsonl_atomic(folder / "corpus.jsonl", [{"id": p.id, "contents": p.contents} for p in rows])
    build_index(folder / "corpus.jsonl", folder / "index")
    return Timed(open_index(folder / "index").retriever, f"BM25, {passages} generated passages")


@contextmanager
def forced(work: Work) -> Iterator[type[InProcessEngine]]:
    """While it holds, agents get engines whose turns end as `work` says; `written` counts their tokens."""

    class Forced(InProcessEngine):
        written = 0

        def __init__(self, model: PreTrainedModel, codec: Codec, **given: Any) -> None:
            super().__init__(model, codec, **given)
            self._text, self._turns = codec, {}

        def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
            length, _ = work.draw(sampling.key)
            tails = [self._text.text_ids(work.text(sampling.key, turn)) for turn in range(work.searches + 1)]
            longest = max(length, *map(len, tails))
            slot = super().open(
                token_ids,
                Sampling(sampling.temperature, longest, sampling.stop, sampling.seed, sampling.key),
            )
            self._turns[slot] = _Turns(longest, tails)
            return slot

        def step(self) -> list[Event]:
            events = []
            for event in super().step():
                told = [self._turns[event.slot].told(token) for token in event.token_ids]
                Forced.written += len(told)
                events.append(event._replace(token_ids=told))
            return events

    before, agent.InProcessEngine = agent.InProcessEngine, Forced
    try:
        yield Forced
    finally:
        agent.InProcessEngine = before


@dataclass
class _Turns:
    length: int
    tails: list[list[int]]  # by turn
    turn: int = 0
    written: int = 0  # of the turn

    def told(self, token: int) -> int:
        tail = self.tails[self.turn]
        place = self.written - (self.length - len(tail))
        self.written += 1
        if self.written == self.length:
            self.turn, self.written = self.turn + 1, 0
        return tail[place] if place >= 0 else token
