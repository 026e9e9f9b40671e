"""What every training run shares: a run folder fed by the loop, resumable state, best weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.protocol import Protocol
from dgpo_cli.core.run_dir import RunDir, check_space
from dgpo_cli.models.load import save_model
from dgpo_cli.train import checkpoint
from dgpo_cli.train.learner import Learner
from dgpo_cli.train.loop import Hooks, Plan, train
from dgpo_cli.train.source import Source

Evaluate = Callable[[], Mapping[str, float]]


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
) -> dict[str, Any]:
    """Train from the run's newest state to the end of the plan; the best weights end up in `run.path`/best.

    Returns {"steps", "best", "seconds", "path"}. Interrupted at any moment, the same call goes on from the
    last saved state and ends with the same weights.
    """
    state = run.path / "state"
    check_space(run.path, (keep + 1) * checkpoint.state_bytes(learner))
    step, extra = checkpoint.load_latest(state, learner)
    run.cut_metrics(step)

    def tell(done: int, seconds: float) -> None:
        if progress is None:
            return
        if plan.seconds is None:
            progress(done, plan.steps)
        else:
            progress(round(min(seconds, plan.seconds)), round(plan.seconds))

    tell(step, float(extra.get("seconds", 0.0)))

    def log(done: int, metrics: Mapping[str, float]) -> None:
        run.log(done, dict(metrics))
        if "seconds" in metrics:
            tell(done, metrics["seconds"])

    def best() -> None:
        save_model(run.path / "best", learner.student, learner.codec.tokenizer, protocol)

    def save(done: int, more: Mapping[str, Any]) -> None:
        checkpoint.save(state, learner, done, more, keep)

    outcome = train(learner, source, plan, Hooks(log, evaluate, save, best), step=step, extra=extra)
    result = asdict(outcome) | {"path": str(run.path)}
    run.finish(result)
    return result
