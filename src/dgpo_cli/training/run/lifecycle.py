"""What every training run shares: a run folder fed by the loop, resumable state, best weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dgpo_cli.agent.identity import dated
from dgpo_cli.core import folders
from dgpo_cli.core.disk import check_space
from dgpo_cli.core.out_of_memory import is_out_of_memory
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.run_dir import FollowedRun, RunDir
from dgpo_cli.errors import ConfigError, DgpoError, TrainingError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.devices import world
from dgpo_cli.models.load import save_model
from dgpo_cli.training import checkpoint
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.loop import Hooks, Plan, train
from dgpo_cli.training.run.guarding import ROLLBACK, Guarding
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.progress_line import TrainingLine
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes.jobs import Sizes, as_options, current, halved, keep_sizes, kept_sizes
from dgpo_cli.training.source import Source

_log = logging.getLogger(__name__)
Evaluate = Callable[[], Mapping[str, float]]


def open_together(open_run: Callable[[], RunDir]) -> RunDir:
    """The run that `open_run` opens in the first of several processes; the others follow it."""
    run = open_run() if world().first else None
    path = world().gather(None if run is None else str(run.path.resolve()))[0]
    return FollowedRun(Path(path)) if run is None else run


def begin_with(run: RunDir, sizes: Sizes, say: Callable[[str], None] | None = None) -> Sizes:
    """The sizes of a run: those that it began with if it goes on, of several processes the first one's."""
    kept = kept_sizes(run.path, sizes) if world().first else sizes
    found: Sizes = world().gather(kept)[0]
    if say is not None and found != sizes:
        say(f"as this run began: {as_options(found) or 'sizes as they are set'}")
    return found


def text_of(run: RunDir, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> Protocol:
    """The protocol that all processes of a run render with: its date is that of the first."""
    own = dated(run, tokenizer, protocol)
    return replace(own, date=world().gather(own.date)[0])


@contextmanager
def smaller_next_time(run: RunDir, settings: KDSettings | RLSettings) -> Iterator[None]:
    """Out of memory ends the run in one line, and half as much goes through the models at once when it goes on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DgpoError) or not is_out_of_memory(error):
            raise
        sizes = halved(settings)
        if world().first and not settings.fit:
            keep_sizes(run.path, sizes)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        again = f"the same command goes on from the last saved state with {as_options(sizes)}"
        if settings.fit:
            again = "what was saved is kept; start again with a smaller -o fit_gib, or without --fit"
        raise TrainingError(
            f"out of memory with {as_options(current(settings))}: {first}",
            hint=f"{again}; more room: --teacher-8bit, -o optimizer=adamw-8bit, -o critic=shared in rl",
        ) from error


def run_training(
    run: RunDir,
    learner: Learner,
    source: Source,
    plan: Plan,
    *,
    evaluate: Evaluate,
    protocol: Protocol,
    keep: int = 1,
    progress: Progress | None = None,
    guarding: Guarding | None = None,
    episodes: KeptEpisodes | None = None,
) -> dict[str, Any]:
    """Train from the run's newest state to the end of the plan; the best weights end up in `run.path`/best.

    Returns {"steps", "untrained_steps", "best", "seconds", "path"}; raises TrainingError where no step had a written
    token. Interrupted at any moment, the same call goes on from the last saved state and ends with the same weights.
    """
    state = run.path / "state"
    _settle(run, learner)
    rolls_back = guarding is not None and guarding.action == "rollback"
    check_space(run.path, (keep + 1 + 2 * rolls_back) * checkpoint.state_bytes(learner))
    learner.world.follow_first(p for module in learner.trained() for p in module.parameters())
    learner.shard()
    step, extra = checkpoint.load_latest(state, learner)
    if learner.world.first:  # only once the newest is known to be whole
        checkpoint.tidy(state, keep)
    if len(set(learner.world.gather(step))) > 1:
        raise ConfigError(
            f"the processes do not all see the saved states of {run.path}",
            hint="put the run folder on a disk that all machines share, and name it with --resume",
        )
    run.cut_metrics(step or -1)  # a row of step 0 is from before the first state
    look = None
    if episodes is not None and learner.world.first:
        episodes.cut(step)
        look = episodes.add
    reached = step
    line = TrainingLine()
    for row in run.metrics():
        line.log(row)

    def tell(done: int, seconds: float) -> None:
        if progress is None:
            return
        if plan.seconds is None:
            progress(done, plan.steps, str(line))
        else:
            progress(round(min(seconds, plan.seconds)), round(plan.seconds), str(line))

    tell(step, float(extra.get("seconds", 0.0)))

    def log(done: int, metrics: Mapping[str, float]) -> None:
        nonlocal reached
        reached = done
        run.log(done, dict(metrics))
        line.log(metrics)
        if "seconds" in metrics:
            tell(done, metrics["seconds"])

    def best() -> None:
        if learner.world.first:
            save_model(run.path / "best", learner.student, learner.codec.tokenizer, protocol)
        if guarding is not None:
            guarding.keep_best(run, learner, reached)

    def save(done: int, more: Mapping[str, Any]) -> None:
        checkpoint.save(state, learner, done, dict(more) | (guarding.state_dict() if guarding else {}), keep)
        if guarding is not None:
            guarding.saved(run)

    def watch(done: int, metrics: Mapping[str, float]) -> None:
        if guarding is not None:
            guarding.watch(run, learner, done, metrics)

    if guarding is not None:
        guarding.resume(run, learner, step, extra)
    if step and extra.get("best") is not None and not learner.world.gather((run.path / "best").is_dir())[0]:
        _log.warning(f"{run.path}/best is gone: the weights of step {step}, the last saved state, take its place")
        reached, extra = step, {**extra, "best": None}
        best()
    if rolls_back:  # the start is what a run goes back to that collapses before its first evaluation
        plan = replace(plan, evaluates_first=True)
    outcome = train(learner, source, plan, Hooks(log, evaluate, save, best, watch, look), step=step, extra=extra)
    if outcome.steps and outcome.untrained_steps == outcome.steps:
        raise TrainingError(
            f"nothing was trained: no text was written in any of {outcome.steps} steps",
            hint="prompts that leave no room for an answer are the usual cause: raise -o rollout.max_prompt_tokens",
        )
    result = asdict(outcome) | {"path": str(run.path)}
    if guarding is not None:
        guarding.finish(run)
        result |= {"alarms": guarding.guard.alarms, "rollbacks": guarding.guard.rollbacks}
    run.finish(result)
    return result


def _settle(run: RunDir, learner: Learner) -> None:
    """Delete what killed processes left of folders, which would count against the disk."""
    if learner.world.first:
        checkpoint.tidy(run.path / "state")
        checkpoint.tidy(run.path / ROLLBACK)
        folders.settle(run.path / "best")
    learner.world.gather(None)
