"""Episodes that the processes of a training run share, and its evaluation between steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import RecordFile, as_read, read_jsonl
from dgpo_cli.core.run_list import VALIDATION_FILE
from dgpo_cli.core.trajectory import Trajectory, attempt_key, recorded, refuse_broken_search, write_trajectories
from dgpo_cli.core.types import Question
from dgpo_cli.models.processes import ALONE, Processes
from dgpo_cli.training.source import Roll

UNFINISHED_FILE = "validation.unfinished.jsonl"  # of an evaluation that is at work, or was interrupted
MAX_KEPT = 200  # ours, episodes in it


def team(agent: Agent, world: Processes, progress: Progress | None = None) -> Roll:
    """Episodes of (question, sample) pairs in order; each process of `world` runs a share, and all get every one.

    `progress` counts the share of this process.

    Shares are balanced by the tokens of the question's last episode; one without counts as the mean. An episode's draws
    depend on its seed and key, so it is the same whoever runs it.
    """
    tokens: dict[str, int] = {}

    def roll(pairs: Sequence[tuple[Question, int]]) -> list[Trajectory]:
        if world.size == 1:
            return list(agent.run(pairs, progress=progress))
        known = [tokens.get(question.key) for question, _ in pairs]
        mean = sum(n for n in known if n is not None) / max(1, sum(n is not None for n in known)) or 1.0
        shares = world.shares([mean if n is None else n for n in known])
        own = [t.to_json() for t in agent.run([pairs[i] for i in shares[world.rank]], progress=progress)]
        made: dict[int, Trajectory] = {}
        for share, records in zip(shares, world.gather(own), strict=True):
            made |= zip(share, map(Trajectory.from_json, records), strict=True)
        tokens.update((t.question.key, len(t.token_ids)) for t in made.values())
        return [made[i] for i in range(len(pairs))]

    return roll


def evaluator(
    agent: Agent,
    questions: Sequence[Question],
    *,
    folder: Path | None = None,
    world: Processes = ALONE,
    model: torch.nn.Module | None = None,
    progress: Progress | None = None,
) -> Callable[[], Mapping[str, float]]:
    """An evaluation for the training loop: greedy EM on validation questions, as "score" too.

    The processes of `world` share the questions, as they share rollouts: nobody waits for the first one to answer all.
    The first `MAX_KEPT` episodes of the last one stay in `folder`, to be looked at with `dgpo report`. With `model`,
    whose weights the agent has, an episode is on disk as soon as it is finished: a run that is killed and comes back to
    the same weights goes on from there.
    It raises RetrievalError when so many searches failed that the score would measure the retriever, not the model.
    """
    greedy = agent.with_settings(temperature=0.0)
    roll = team(greedy, world, progress)
    if folder is not None and model is not None and world.size == 1:
        roll = partial(_recorded_roll, greedy, model, folder / UNFINISHED_FILE, progress)

    def evaluate() -> Mapping[str, float]:
        trajectories = roll([(question, 0) for question in questions])
        count = max(1, len(trajectories))
        refuse_broken_search([cause for t in trajectories if (cause := t.failed_search) is not None], count)
        if folder is not None and world.first:
            meta = {"protocol": greedy.codec.protocol.to_json()}
            kept = sorted((replace(t, logprobs=None) for t in trajectories[:MAX_KEPT]), key=lambda t: t.key)
            write_trajectories(folder / VALIDATION_FILE, kept, meta, kind="evaluation")
            (folder / UNFINISHED_FILE).unlink(missing_ok=True)
        em = sum(t.score.correct for t in trajectories if t.score is not None) / count
        return {
            "em": em,
            "searches": sum(len(t.searches) for t in trajectories) / count,
            "score": em,
        }

    return evaluate


def _recorded_roll(
    agent: Agent,
    model: torch.nn.Module,
    file: Path,
    progress: Progress | None,
    pairs: Sequence[tuple[Question, int]],
) -> list[Trajectory]:
    """Episodes in order, each in `file` as soon as it is finished; those that are there of these weights are taken."""
    meta = {"settings": agent.record(), "weights": parameters_digest(model)}
    if file.exists() and next(read_jsonl(file), (0, {}))[1] != as_read(
        {"schema": "unfinished validation", "version": RecordFile.version} | meta
    ):
        file.unlink()
    with RecordFile(file, key="key", schema="unfinished validation", meta=meta) as records:
        made = {t.key: t for t in records.made(recorded)}
        missing = [pair for pair in pairs if attempt_key(*pair) not in made]
        before = len(pairs) - len(missing)

        def tell(done: int, _: int, /, note: str = "") -> None:
            if progress is not None:
                progress(before + done, len(pairs), note)

        for trajectory in agent.finished(missing, progress=tell):
            made[trajectory.key] = replace(trajectory, logprobs=None)
            if trajectory.failed_search is None:
                records.append({"key": trajectory.key} | made[trajectory.key].to_json())
    return [made[attempt_key(*pair)] for pair in pairs]


def parameters_digest(model: torch.nn.Module) -> str:
    """Digest of all weights at this moment: the same digest means the same weights, bit by bit."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]
