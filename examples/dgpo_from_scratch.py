"""DGPO (arXiv 2508.20324) on one page, in plain torch: a small model learns to search a generated world.

    python examples/dgpo_from_scratch.py            # under a minute on one core, no downloads

An episode: the model reads a question and writes `<search> name </search>`; the passage of that name is put into its
text; after one or two searches it writes `<answer> name </answer>`. Three stages, as in the paper:

1. a teacher learns from scripted episodes,
2. a smaller student learns less long from them (the cold start),
3. DGPO: the student writes episodes itself, a right answer is rewarded (PPO), and where the answer was
   wrong it is pulled towards the teacher, token by token.

Shapes: B episodes, T tokens of the longest, V vocabulary. A per-token entry t is about token t, so what a model says
about it comes from the tokens before: `logits[:, :-1]` is about `ids[:, 1:]`.
"""

from __future__ import annotations

import argparse
import random
import re
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgpo_cli.offline.world.world import World, WorldSize, build_world

PAD, LAYERS, MAX_SEARCHES, MAX_WRITTEN = 0, 1, 2, 16  # tokens that one episode may write
CLIP, KL_COEF, ENTROPY_COEF = 0.2, 1.0, 0.001


class Words:
    """Text to ids and back: names are two tokens (`Sene`, `x`), anything else is words and signs."""

    def __init__(self, texts: list[str]) -> None:
        self.words = ["", *sorted({word for text in texts for word in self.cut(text)})]
        self.ids = {word: place for place, word in enumerate(self.words)}

    @staticmethod
    def cut(text: str) -> list[str]:
        return re.findall(r"</?\w+>|[A-Z][a-z]?[aeiou]|[a-z]+|[^\w\s]", text)

    def encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in self.cut(text)]

    def name(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


class Model(nn.Module):
    """A causal transformer; every token also sees the one before it, so that looking a name up takes one layer."""

    def __init__(self, vocabulary: int, outputs: int, width: int = 48, longest: int = 128) -> None:
        super().__init__()
        self.token, self.before = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] to [B, T, outputs]."""
        before = F.pad(ids[:, :-1], (1, 0))
        x = self.token(ids) + self.before(before) + self.place(torch.arange(ids.shape[1]))
        later = torch.triu(torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool), diagonal=1)
        return self.head(self.layers(x, mask=later, is_causal=True))


class Agent:
    """The world as an environment: questions, the search engine, and what a right episode looks like."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.passages = {p.title: f"<information> {p.title} {p.text} </information>" for p in world.passages}
        texts = [q.text for split in world.questions.values() for q in split] + list(self.passages.values())
        self.words = Words([*texts, "<search> </search> <answer> </answer>"])
        self.searched, self.answered = self.words.ids["</search>"], self.words.ids["</answer>"]

    def find(self, query: str) -> list[int]:
        return self.words.encode(self.passages.get(query, "<information> </information>"))

    def demonstration(self, question) -> tuple[list[int], list[bool]]:
        """Tokens of a right episode, and which of them a model writes."""
        ids = self.words.encode(question.text)
        written = [False] * len(ids)
        for hop in self.world.hops[question.id]:
            ask, found = self.words.encode(f"<search> {hop.subject} </search>"), self.find(hop.subject)
            ids += ask + found
            written += [True] * len(ask) + [False] * len(found)
        answer = self.words.encode(f"<answer> {question.answers[0]} </answer>")
        return ids + answer, written + [True] * len(answer)

    @torch.no_grad()
    def roll(self, model: Model, questions, *, greedy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Let the model write. Returns ids [B, T], written [B, T], correct [B]."""
        ids = [self.words.encode(question.text) for question in questions]
        written = [[False] * len(row) for row in ids]
        answers: list[str | None] = [None] * len(ids)
        searches = [0] * len(ids)
        alive = set(range(len(ids)))
        for _ in range(MAX_WRITTEN):
            rows = sorted(alive)
            batch, _ = padded([ids[row] for row in rows], [written[row] for row in rows])
            last = torch.tensor([len(ids[row]) - 1 for row in rows])
            logits = model(batch)[torch.arange(len(rows)), last]  # [rows, V]
            tokens = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1)[:, 0]
            for row, token in zip(rows, tokens.tolist(), strict=True):
                ids[row].append(token)
                written[row].append(True)
                name = self.words.name(ids[row][-3:-1])
                if token == self.answered:
                    answers[row] = name
                    alive.discard(row)
                elif token == self.searched:
                    found = self.find(name)
                    ids[row] += found
                    written[row] += [False] * len(found)
                    searches[row] += 1
                    if searches[row] > MAX_SEARCHES:
                        alive.discard(row)
            if not alive:
                break
        correct = torch.tensor([a == q.answers[0] for a, q in zip(answers, questions, strict=True)])
        return *padded(ids, written), correct


def padded(ids: list[list[int]], written: list[list[bool]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, ids))
    return (
        torch.tensor([row + [PAD] * (width - len(row)) for row in ids]),
        torch.tensor([row + [False] * (width - len(row)) for row in written]),
    )


def imitate(model: Model, agent: Agent, questions, steps: int, batch: int, rng: random.Random) -> None:
    """Maximum likelihood of the written tokens of scripted episodes."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = [agent.demonstration(question) for question in rng.sample(questions, batch)]
        ids, written = padded([row for row, _ in rows], [mask for _, mask in rows])
        loss = F.cross_entropy(model(ids)[:, :-1][written[:, 1:]], ids[:, 1:][written[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def dgpo_loss(
    log_probs: Tensor, old: Tensor, taken: Tensor, advantages: Tensor, teacher: Tensor, wrong: Tensor
) -> Tensor:
    """Loss of N written tokens: PPO's clipped surrogate, and KL(student || teacher) where the answer was wrong.

    log_probs, teacher [N, V]; old, advantages, wrong [N]; taken [N] the tokens that were written.
    """
    ratio = (log_probs.gather(-1, taken[:, None])[:, 0] - old).exp()
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    kl = (log_probs.exp() * (log_probs - teacher)).sum(-1)
    return policy - ENTROPY_COEF * entropy + KL_COEF * wrong * kl


def dgpo(student: Model, teacher: Model, agent: Agent, questions, steps: int, batch: int, rng: random.Random):
    """Yields the share of right answers of each step's own episodes."""
    critic = Model(len(agent.words.words), 1)
    policy_optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.0)
    value_optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(steps):
        ids, written, correct = agent.roll(student, rng.sample(questions, batch))
        mask = written[:, 1:]  # [B, T-1]; never padding, prompt or passages: nobody is trained on what it only read
        taken, row = ids[:, 1:][mask], mask.nonzero()[:, 0]  # [N]
        returns = correct.float()[row]  # [N]; without a discount every token earns the episode's reward
        values = critic(ids)[:, :-1, 0][mask]
        with torch.no_grad():
            teacher_log_probs = teacher(ids)[:, :-1][mask].log_softmax(-1)  # [N, V]
            advantages = returns - values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
        log_probs = student(ids)[:, :-1][mask].log_softmax(-1)
        old = log_probs.detach().gather(-1, taken[:, None])[:, 0]
        wrong = (~correct).float()[row]
        loss = dgpo_loss(log_probs, old, taken, advantages, teacher_log_probs, wrong).mean()
        value_loss = 0.5 * ((values - returns) ** 2).mean()
        for optimizer, term, model in (
            (policy_optimizer, loss, student),
            (value_optimizer, value_loss, critic),
        ):
            optimizer.zero_grad()
            term.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        yield float(correct.float().mean())


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of DGPO")
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--student-steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=32, help="episodes of a step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # a model this small loses by a second thread
    rng = random.Random(options.seed)
    agent = Agent(build_world(options.seed, WorldSize(1000, 1000, 10, 100)))
    splits = {name: list(questions) for name, questions in agent.world.questions.items()}
    vocabulary, started = len(agent.words.words), time.perf_counter()
    em: dict[str, float] = {}

    def measure(name: str, model: Model) -> None:
        em[name] = float(agent.roll(model, splits["test"], greedy=True)[2].float().mean())
        print(f"{time.perf_counter() - started:5.1f} s  {name:16} EM {em[name]:6.1%} on held-out questions", flush=True)

    teacher = Model(vocabulary, vocabulary, width=64)
    imitate(teacher, agent, splits["demonstrations"], options.teacher_steps, options.batch, rng)
    measure("teacher", teacher)
    student = Model(vocabulary, vocabulary)
    imitate(student, agent, splits["demonstrations"], options.student_steps, options.batch, rng)
    measure("cold start", student)
    for step, right in enumerate(dgpo(student, teacher, agent, splits["train"], options.steps, options.batch, rng), 1):
        if step % 20 == 0:
            print(f"          step {step:3}: {right:6.1%} of its own episodes are right")
    measure("dgpo", student)
    return em


if __name__ == "__main__":
    main()
