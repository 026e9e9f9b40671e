"""Signs that a student collapses, read from the metrics of steps and evaluations: named alarms, each with what it saw.

An alarm is armed by the first step whose value is healthy and rings when the mean of the last `window` steps is not.
So a student that cannot search yet raises none, and one that has unlearned it does. What differs between models, such
as entropy and the distance to a teacher, is judged by the run's own lowest value. How far an update moves the policy
needs no such past: that alarm is armed from the start. A method is watched by the alarms whose metric it logs. All
thresholds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError

_FAR = 1e30
OnCollapse = Literal["warn", "stop", "rollback"]


@dataclass(frozen=True, slots=True)
class CollapseSettings:
    """When a run counts as collapsed: thresholds of alarms over means of `window` steps."""

    window: int = setting(5, "steps whose mean is judged", source="ours")
    reward_floor: float = setting(0.01, "alarm: mean reward below it, once a step had reward_alive", source="ours")
    reward_alive: float = setting(0.05, "mean reward of a step that arms that alarm", source="ours")
    entropy_min: float = setting(0.0005, "alarm: nats per token below it", source="ours")
    entropy_rise: float = setting(
        2.0, "nats per token above the lowest so far: a raw model of 50,000 words begins at 4", source="ours"
    )
    behavior_kl_max: float = setting(
        0.5, "nats per token between the policy that wrote and the updated one", source="ours"
    )
    teacher_kl_rise: float = setting(4.0, "nats per token above the lowest so far, on wrong answers", source="ours")
    blank_queries_max: float = setting(0.5, "share of searches", source="ours")
    repeated_queries_max: float = setting(0.5, "share of searches that repeat one of their episode", source="ours")
    invalid_actions_max: float = setting(0.5, "share of turns", source="ours")
    right_logprob_drop: float = setting(
        1.0, "nats per token below the best mean so far, of right rollouts", source="ours"
    )
    nll_rise: float = setting(1.0, "nats per token above the lowest so far, of the teacher's text", source="ours")
    lr_factor: float = setting(0.5, "of the learning rates, at each rollback", source="ours")
    max_rollbacks: int = setting(3, "then the run ends", source="ours")

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"collapse.window = {self.window}", hint="give 1 step or more")
        if not 0 < self.lr_factor < 1:
            raise ConfigError(f"collapse.lr_factor = {self.lr_factor}", hint="give a factor between 0 and 1")


@dataclass(frozen=True, slots=True)
class Alarm:
    """`values` are those of the steps up to `step` whose mean, `mean`, is beyond `threshold`."""

    name: str
    metric: str
    step: int
    values: tuple[float, ...]
    mean: float
    threshold: float

    def __str__(self) -> str:
        side = "below" if self.mean < self.threshold else "above"
        seen = ", ".join(f"{value:.4g}" for value in self.values)
        return (
            f"{self.name} at step {self.step}: mean {self.metric} {self.mean:.4g} is {side} {self.threshold:.4g} "
            f"(last steps: {seen})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "alarm": self.name,
            "metric": self.metric,
            "values": list(self.values),
            "mean": self.mean,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """Healthy is what lies between `low` and `high`; `alive`, where given, is what arms the alarm instead of `low`."""

    name: str
    metric: str
    low: float = float("-inf")
    high: float = float("inf")
    alive: float | None = None
    from_start: bool = False  # armed before any step was healthy
    drop: float | None = None  # `low` is the best mean so far less this
    rise: float | None = None  # `high` is the lowest value so far, of those from `low` on, plus this
    lasting: int = 1  # steps in a row that are as low count as low, at the start fewer
    window: int | None = None  # of this alarm, instead of the settings'


def rules(settings: CollapseSettings) -> tuple[Rule, ...]:
    """The alarms, in the order in which they are reported."""
    s = settings
    return (
        # Of the student's own text one step alone says little: it may have written a few short texts (`lasting`).
        Rule("reward gone", "reward", low=s.reward_floor, alive=s.reward_alive),
        Rule("entropy out of its band", "entropy", low=s.entropy_min, rise=s.entropy_rise, lasting=2),
        Rule("policy jumps", "behavior_kl", high=s.behavior_kl_max, from_start=True),
        Rule("far from the teacher", "teacher_k1_wrong", rise=s.teacher_kl_rise, lasting=2),
        Rule("far from the teacher (exact KL)", "gated_reverse_kl", rise=s.teacher_kl_rise, lasting=2),
        Rule("blank queries", "blank_queries", high=s.blank_queries_max),
        Rule("repeated queries", "repeated_queries", high=s.repeated_queries_max),
        Rule("invalid actions", "valid_actions", low=1 - s.invalid_actions_max),
        Rule("right answers unlearned", "right_logprob", drop=s.right_logprob_drop),
        # Above the lowest value and not the lowest mean: a rate that ruins a good student does it within the first
        # window. An evaluation is a mean over many sequences, so that one is enough.
        Rule("loss blows up", "nll", rise=s.nll_rise),
        Rule("validation loss blows up", "eval_nll", rise=s.nll_rise, window=1),
    )


@dataclass(slots=True)
class Guard:
    """Watches one run. Its state is a function of the steps seen, so a resumed run rings as an undisturbed one."""

    settings: CollapseSettings
    lr_scale: float = 1.0  # of all learning rates, after the rollbacks so far
    rollbacks: int = 0
    alarms: int = 0
    windows: dict[str, list[float]] = field(default_factory=dict)  # by alarm
    armed: dict[str, bool] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # of alarms that compare with it

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Alarms that this step, or the evaluation after it, sets off.

        One that rang is silent until its window is full again and it is re-armed.
        """
        found = [alarm for rule in rules(self.settings) if (alarm := self._look(rule, step, metrics)) is not None]
        self.alarms += len(found)
        return found

    def _look(self, rule: Rule, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        if rule.metric not in metrics:  # no right answer, no teacher
            return None
        value = metrics[rule.metric]
        if math.isnan(value):
            return None
        value = max(-_FAR, min(_FAR, value))  # an infinite one is beyond every threshold, and JSON has none
        size = rule.window or self.settings.window
        window = [*self.windows.get(rule.name, ()), value][-size:]
        self.windows[rule.name] = window
        low, high = rule.low, rule.high
        if rule.rise is not None:
            if value >= low:
                seen = max(window[-rule.lasting :])
                self.best[rule.name] = min(seen, self.best.get(rule.name, seen))
            high = self.best.get(rule.name, math.inf) + rule.rise
        if (low if rule.alive is None else rule.alive) <= value <= high:
            self.armed[rule.name] = True
        if len(window) < size:
            return None
        mean = sum(window) / len(window)
        if rule.drop is not None:
            best = self.best[rule.name] = max(mean, self.best.get(rule.name, mean))
            low = best - rule.drop
        # While a loss falls fast the mean lags behind: there all of the window must be above.
        top = mean if rule.rise is None else min(window)
        if (low <= mean and top <= high) or not self.armed.get(rule.name, rule.from_start):
            return None
        self.armed[rule.name] = False
        self.windows[rule.name] = []
        return Alarm(rule.name, rule.metric, step, tuple(window), mean, low if mean < low else high)

    def roll_back(self) -> bool:
        """Count a rollback and lower the learning rates; False if there were too many already.

        What was seen so far is forgotten: the weights that the run goes back to may be far from the best step's.
        """
        if self.rollbacks >= self.settings.max_rollbacks:
            return False
        self.rollbacks += 1
        self.lr_scale *= self.settings.lr_factor
        for seen in (self.windows, self.armed, self.best):
            seen.clear()
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
            "alarms": self.alarms,
            "windows": {name: list(values) for name, values in self.windows.items()},
            "armed": dict(self.armed),
            "best": dict(self.best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lr_scale, self.rollbacks, self.alarms = state["lr_scale"], state["rollbacks"], state["alarms"]
        self.windows = {name: list(values) for name, values in state["windows"].items()}
        self.armed, self.best = dict(state["armed"]), dict(state["best"])
