"""The training loop of distillation and reinforcement learning alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpo_cli.core.host_memory import give_back
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.credit import samples_of
from dgpo_cli.training.learner import Learner
from dgpo_cli.training.source import Source
from dgpo_cli.training.step import optimizer_step

_LONG_S = 1.0  # seconds: of a shorter step there is little to give back, and that would take a part of its time


@dataclass(frozen=True, slots=True)
class Plan:
    """How long the loop runs, and when it evaluates and saves."""

    steps: int
    mini_batches: int = 1  # optimizer updates per step
    critic_warmup_steps: int = 0  # steps that move the critic alone
    eval_every: int = 0  # steps; 0 evaluates at the end only
    save_every: int = 0  # steps; a state follows every evaluation too, so that a resumed run never repeats one
    seed: int = 0
    seconds: float | None = None  # stop after this much training time, evaluation and saving not counted
    evaluates_first: bool = False  # before the first step too

    def ends(self, step: int, seconds: float) -> bool:
        """Whether `step` finished steps in `seconds` are all."""
        return step >= self.steps or (self.seconds is not None and seconds >= self.seconds)


# Number of a step, what the student wrote in it, and the samples of that: before they are trained on.
Look = Callable[[int, Sequence[Trajectory], Sequence[Sample]], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of the loop. `step` counts finished steps."""

    log: Callable[[int, Mapping[str, float]], None]
    evaluate: Callable[[], Mapping[str, float]]
    save: Callable[[int, Mapping[str, Any]], None]
    best: Callable[[], None]  # the weights just evaluated are the best so far
    watch: Callable[[int, Mapping[str, float]], None] | None = None  # what was logged; may put back other weights
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What the loop did, the steps before a resumption included."""

    steps: int
    best: float | None  # the best evaluation's score
    seconds: float  # of training, evaluation and saving not counted
    untrained_steps: int = 0  # of the steps, those without a written token, which moved nothing


def train(
    learner: Learner, source: Source, plan: Plan, hooks: Hooks, *, step: int = 0, extra: Mapping[str, Any]
) -> TrainingOutcome:
    """Train from `step` to the end of the plan.

    `extra` is what the last checkpoint carried: {} at the start, else {"best": x, "seconds": s, "untrained_steps": n}.
    An evaluation's "score" (larger is better) decides which weights are the best; without one the last are.
    """
    best, seconds = extra.get("best"), float(extra.get("seconds", 0.0))
    untrained = int(extra.get("untrained_steps", 0))
    if step and plan.ends(step, seconds):  # interrupted after its last save
        return TrainingOutcome(step, best, seconds, untrained)
    if not step and (plan.evaluates_first or learner.objective.evaluates_first):
        best = _evaluate(learner, hooks, step, best)
    while not plan.ends(step, seconds):
        started = time.perf_counter()
        metrics = run_step(learner, source, plan, step, hooks.look)
        step += 1
        untrained += not metrics["trained_tokens"]
        learner.objective.after_step(metrics, step / plan.steps)
        # Where a plan ends by the clock, all processes have to go by the same one.
        seconds += learner.world.gather(time.perf_counter() - started)[0]
        hooks.log(step, metrics | {"seconds": seconds})
        if hooks.watch is not None:
            hooks.watch(step, metrics)
        evaluated = plan.ends(step, seconds) or (plan.eval_every and step % plan.eval_every == 0)
        if evaluated:
            best = _evaluate(learner, hooks, step, best)
        if evaluated or (plan.save_every and step % plan.save_every == 0):
            hooks.save(step, {"best": best, "seconds": seconds, "untrained_steps": untrained})
    return TrainingOutcome(step, best, seconds, untrained)


def run_step(learner: Learner, source: Source, plan: Plan, step: int, look: Look | None = None) -> dict[str, float]:
    """Get trajectories, give credit, update the weights; metrics of the step, seconds by phase among them."""
    clock = [time.perf_counter()]
    sequences = source.next(step)
    clock.append(time.perf_counter())
    samples, metrics = samples_of(learner, sequences)
    if look is not None and sequences.by_student:
        look(step + 1, sequences.by_student, samples[len(sequences.by_teacher) :])
    clock.append(time.perf_counter())
    updates = [
        optimizer_step(learner, part, policy=step >= plan.critic_warmup_steps) for part in _split(samples, plan, step)
    ]
    for name in {name for update in updates for name in update}:
        values = [update[name] for update in updates if name in update]
        metrics[name] = sum(values) / len(values)
    if learner.device.type == "cpu" and time.perf_counter() - clock[0] > _LONG_S:
        give_back()
    clock.append(time.perf_counter())
    names = ("seconds_rollout", "seconds_signals", "seconds_update")
    metrics |= {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    metrics["trained_tokens"] = trained = sum(sample.num_trained for sample in samples if sample.weight)
    metrics["tokens_per_second"] = trained / (clock[-1] - clock[0])
    return metrics


def _split(samples: list[Sample], plan: Plan, step: int) -> list[list[Sample]]:
    """Shuffled mini-batches of nearly equal size."""
    order = list(samples)
    random.Random(f"mini-batches {plan.seed} {step}").shuffle(order)
    return [order[i :: plan.mini_batches] for i in range(min(plan.mini_batches, len(order)))]


def _evaluate(learner: Learner, hooks: Hooks, step: int, best: float | None) -> float | None:
    metrics = hooks.evaluate()
    learner.objective.after_eval(metrics)
    logged = {f"eval_{name}": value for name, value in metrics.items()}
    hooks.log(step, logged)
    score = metrics.get("score")  # without one there is nothing to compare by: the latest weights count
    if score is None or best is None or score > best:
        hooks.best()
        best = score
    if hooks.watch is not None:
        hooks.watch(step, logged)
    return best
