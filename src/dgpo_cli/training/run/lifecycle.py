"""The life of every training run: a run folder fed by the loop, resumable state, best weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dgpo_cli.agent.identity import dated
from dgpo_cli.core import folders
from dgpo_cli.core.disk import check_space
from dgpo_cli.core.out_of_memory import is_out_of_memory
from dgpo_cli.core.run_dir import FollowedRun, RunDir
from dgpo_cli.core.run_metrics import METRICS_FILE
from dgpo_cli.errors import ConfigError, DgpoError, TrainingError, first_line
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.devices import world
from dgpo_cli.models.load import save_model
from dgpo_cli.training import checkpoint
from dgpo_cli.training.collapse import CollapseSettings, Guard
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.loop import Hooks, Plan, TrainingOutcome, train
from dgpo_cli.training.run.guarding import ROLLBACK, Guarding
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.run.progress_line import TrainingLine
from dgpo_cli.training.settings import TrainSettings
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
def smaller_next_time(run: RunDir, settings: TrainSettings) -> Iterator[None]:
    """Half as much goes through the models at once when a run goes on that ran out of memory.

    Raises TrainingError, one line, in place of what the library raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DgpoError) or not is_out_of_memory(error):
            raise
        sizes = halved(settings)
        if world().first and not settings.fit:
            keep_sizes(run.path, sizes)
        first = first_line(error)[:120]
        again = f"the same command goes on from the last saved state with {as_options(sizes)}"
        if settings.fit:
            again = "what was saved is kept; start again with a smaller -o fit_gib, or without --fit"
        raise TrainingError(
            f"out of memory with {as_options(current(settings))}: {first}",
            hint=f"{again}; more room: --teacher-8bit, -o optimizer=adamw-8bit, -o critic=shared in rl",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult(TrainingOutcome):
    """A finished run, as run.json keeps it."""

    path: str
    alarms: int  # of the collapse guard
    rollbacks: int


def run_training(
    run: OpenRun,
    learner: Learner,
    source: Source,
    plan: Plan,
    *,
    evaluate: Evaluate,
    protocol: Protocol,
    guarding: Guarding | None = None,
    episodes: KeptEpisodes | None = None,
) -> TrainingResult:
    """Train from the run's newest state to the end of the plan; the best weights end up in the run's folder `best`.

    Raises TrainingError where no step had a written token. Interrupted at any moment, the same call goes on from the
    last saved state and ends with the same weights.
    """
    guarding = guarding or Guarding(Guard(CollapseSettings()), "warn", run.warn)
    rolls_back = guarding.action == "rollback"
    step, extra = _begin(run, learner, rolls_back)
    folder, look = run.folder, None
    _tell_gone(run, step)
    folder.cut_metrics(step or -1)  # a row of step 0 is from before the first state
    if episodes is not None and learner.world.first:
        episodes.cut(step)
        look = episodes.add
    records = _Records(run, learner, plan, protocol, guarding, step)
    for row in folder.metrics():
        records.line.log(row)
    records.tell(step, float(extra.get("seconds", 0.0)))
    guarding.resume(folder, learner, step, extra)
    if step and extra.get("best") is not None and not learner.world.gather((folder.path / "best").is_dir())[0]:
        _log.warning(f"{folder.path}/best is gone: the weights of step {step}, the last saved state, take its place")
        extra = {**extra, "best": None}
        records.best()
    if rolls_back:  # the start is what a run goes back to that collapses before its first evaluation
        plan = replace(plan, evaluates_first=True)
    hooks = Hooks(records.log, evaluate, records.save, records.best, records.watch, look)
    outcome = train(learner, source, plan, hooks, step=step, extra=extra)
    if outcome.steps and outcome.untrained_steps == outcome.steps:
        raise TrainingError(
            f"nothing was trained: no text was written in any of {outcome.steps} steps",
            hint="prompts that leave no room for an answer are the usual cause: raise -o rollout.max_prompt_tokens",
        )
    guarding.finish(folder)
    result = TrainingResult(
        **asdict(outcome),
        path=str(folder.path),
        alarms=guarding.guard.alarms,
        rollbacks=guarding.guard.rollbacks,
    )
    folder.finish(asdict(result))
    return result


def _tell_gone(run: OpenRun, step: int) -> None:
    """What is missing of a run that goes on after `step` and cannot be made again."""
    log = run.folder.path / METRICS_FILE
    if step and not log.is_file():
        _log.warning("%s is gone: what was logged before step %d is lost", log, step + 1)
    if not step and log.is_file() and run.say is not None:
        run.say(f"{run.folder.path} has no saved state: it begins again with the first step")


def _begin(run: OpenRun, learner: Learner, rolls_back: bool) -> tuple[int, Mapping[str, Any]]:
    """Load the newest state into the learner; returns its step and the other parts of the state."""
    path = run.folder.path
    _settle(run.folder, learner)
    check_space(path, (run.keep + 1 + 2 * rolls_back) * checkpoint.state_bytes(learner))
    learner.world.follow_first(p for module in learner.trained() for p in module.parameters())
    learner.shard()
    step, extra = checkpoint.load_latest(path / "state", learner)
    if learner.world.first:  # only once the newest is known to be whole
        checkpoint.tidy(path / "state", run.keep)
    if len(set(learner.world.gather(step))) > 1:
        raise ConfigError(
            f"the processes do not all see the saved states of {path}",
            hint="put the run folder on a disk that all machines share, and name it with --resume",
        )
    return step, extra


@dataclass(slots=True)
class _Records:
    """Writes the output of the loop into files of the run folder, and passes it to listeners."""

    run: OpenRun
    learner: Learner
    plan: Plan
    protocol: Protocol  # that the best weights are saved with
    guarding: Guarding
    reached: int  # steps
    line: TrainingLine = field(default_factory=TrainingLine)

    def tell(self, done: int, seconds: float) -> None:
        if self.plan.seconds is None:
            self.run.progress(done, self.plan.steps, str(self.line))
        else:
            self.run.progress(round(min(seconds, self.plan.seconds)), round(self.plan.seconds), str(self.line))

    def log(self, done: int, metrics: Mapping[str, float]) -> None:
        self.reached = done
        self.run.folder.log(done, dict(metrics))
        self.line.log(metrics)
        if "seconds" in metrics:
            self.tell(done, metrics["seconds"])

    def best(self) -> None:
        if self.learner.world.first:
            tokenizer = self.learner.codec.tokenizer
            save_model(self.run.folder.path / "best", self.learner.student, tokenizer, self.protocol)
        self.guarding.keep_best(self.run.folder, self.learner, self.reached)

    def save(self, done: int, more: Mapping[str, Any]) -> None:
        extra = dict(more) | self.guarding.state_dict()
        checkpoint.save(self.run.folder.path / "state", self.learner, done, extra, self.run.keep)
        self.guarding.saved(self.run.folder)

    def watch(self, done: int, metrics: Mapping[str, float]) -> None:
        self.guarding.watch(self.run.folder, self.learner, done, metrics)


def _settle(run: RunDir, learner: Learner) -> None:
    """Delete what killed processes left of folders, which would count against the disk."""
    if learner.world.first:
        checkpoint.tidy(run.path / "state")
        checkpoint.tidy(run.path / ROLLBACK)
        folders.settle(run.path / "best")
    learner.world.gather(None)
