"""Steps and figures of nothing, of one, and of equals: a mean of nothing is left out, never NaN, and claims nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_train_step import learner, trajectories

from dgpo_cli.core.records import dump_line, to_json
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import SearchCall, StopReason
from dgpo_cli.errors import TrainingError
from dgpo_cli.evaluation.stats import (
    Interval,
    bootstrap_interval,
    mean_paired_difference,
    nested_interval,
    paired_difference,
    share_interval,
    wilson,
)
from dgpo_cli.objectives.advantage import group_advantages, whiten
from dgpo_cli.training.collapse import CollapseSettings, Guard
from dgpo_cli.training.kd import nll
from dgpo_cli.training.loop import Plan, run_step
from dgpo_cli.training.run.lifecycle import run_training
from dgpo_cli.training.run.open_run import OpenRun
from dgpo_cli.training.source import Sequences

STUDENT_WRITES = ("ppo", "dgpo", "grpo", "opd", "minillm")
TEACHER_WRITES = ("seqkd", "kd", "gkd", "taid", "distillm")


def unwritten(trajectory: Trajectory) -> Trajectory:
    """A prompt that left no room: nothing was written."""
    return replace(
        trajectory, written=(False,) * len(trajectory.written), stop=StopReason.MAX_TOKENS, answer=None, turns=0
    )


def one_token(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, written=(*(False,) * (len(trajectory.written) - 1), True))


class Fixed:
    def __init__(self, method: str, data: Sequence[Trajectory]) -> None:
        own = method in STUDENT_WRITES
        self._sequences = Sequences(() if own else data, data if own else ())

    def next(self, _step: int) -> Sequences:
        return self._sequences


def stepped(method: str, data: Sequence[Trajectory], **options: Any) -> tuple[dict[str, float], bool]:
    """Metrics of a step, and whether it moved a weight."""
    if method == "minillm":
        data = [replace(t, logprobs=tuple(-1.0 * w for w in t.written)) for t in data]
    made = learner(method, options)
    before = [p.detach().clone() for p in made.student.parameters()]
    metrics = run_step(made, Fixed(method, data), Plan(4), 0)
    made.objective.after_step(metrics, 0.25)
    moved = any(not torch.equal(a, b) for a, b in zip(before, made.student.parameters(), strict=True))
    return metrics, moved


def require_finite(metrics: Mapping[str, float]) -> None:
    assert not {name: value for name, value in metrics.items() if not math.isfinite(value)}
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("method", STUDENT_WRITES + TEACHER_WRITES)
def test_a_step_without_a_written_token_claims_nothing(method: str) -> None:
    metrics, moved = stepped(method, [unwritten(t) for t in trajectories(3)])
    require_finite(metrics)
    assert not moved and metrics["trained_tokens"] == 0
    told = {"right_logprob", "teacher_k1_wrong", "engine_mismatch", "entropy", "policy_loss", "valid_actions", "nll"}
    assert not told & metrics.keys()


@pytest.mark.parametrize("form", ["k1-reward", "full-loss"])
def test_wrong_episodes_without_a_token_leave_their_metric_out(form: str) -> None:
    data = [t if t.score is not None and t.score.correct else unwritten(t) for t in trajectories(6)]
    metrics, moved = stepped("dgpo", data, kl_form=form)
    require_finite(metrics)
    assert moved and "teacher_k1_wrong" not in metrics and "right_logprob" in metrics


def test_right_episodes_without_a_token_leave_theirs_out() -> None:
    data = [unwritten(t) if t.score is not None and t.score.correct else t for t in trajectories(6)]
    metrics, _ = stepped("dgpo", data)
    require_finite(metrics)
    assert "right_logprob" not in metrics and "teacher_k1_wrong" in metrics


@pytest.mark.parametrize("method", STUDENT_WRITES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_token_one_episode_one_group_and_equal_rewards(method: str, count: int) -> None:
    same = trajectories()[1]
    equal = [replace(same, sample=n) for n in range(count)]
    require_finite(stepped(method, equal)[0])
    require_finite(stepped(method, [one_token(t) for t in equal])[0])
    require_finite(stepped(method, [one_token(equal[0]), *map(unwritten, equal[1:])])[0])


def test_shares_of_searches_are_left_out_where_none_was_made() -> None:
    metrics, _ = stepped("ppo", trajectories(3))
    assert not {"blank_queries", "repeated_queries"} & metrics.keys() and metrics["searches"] == 0


def test_whitening_of_nothing_and_of_equals() -> None:
    values, none = torch.tensor([3.0, 5.0, 9.0]), torch.tensor([False, False, False])
    assert whiten([], []) == [] and whiten([values], [none])[0].equal(values)
    assert whiten([values], [torch.tensor([False, True, False])])[0].equal(values)
    two = whiten([values], [torch.tensor([True, True, False])])[0]
    assert two.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])
    assert whiten([torch.ones(3)], [~none])[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 16])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 0.9, 2 / 3, -0.2])
def test_equal_rewards_are_worth_exactly_nothing(value: float, count: int) -> None:
    """A sum of 0.7 and 0.7 rounds, and dividing by no spread would make an advantage of 0.06 of it."""
    totals = torch.tensor([value] * count + [0.0, 1.0])
    groups = ["equal"] * count + ["other"] * 2
    for kind in ("standardized", "centred", "leave-one-out"):
        found = group_advantages(totals, groups, kind)
        assert found[:count].tolist() == [0.0] * count and found[-1] > 0 > found[-2]
    assert whiten([torch.full((count,), value)], [torch.ones(count).bool()])[0].tolist() == [0.0] * count


def test_episodes_that_failed_to_search_train_nothing() -> None:
    """They have no weight; beside others without a written token nothing is claimed."""
    failed = [replace(t, stop=StopReason.SEARCH_FAILED, answer=None) for t in trajectories(1)]
    failed = [replace(t, searches=(SearchCall("q", (), error="down"),)) for t in failed]
    metrics, moved = stepped("opd", [*failed, *map(unwritten, trajectories(40)[1:])])
    assert failed[0].num_written and not moved and metrics["trained_tokens"] == 0


def test_a_validation_loss_of_nothing_is_none() -> None:
    made = learner("seqkd")
    assert nll(made, []) is None and nll(made, [unwritten(t) for t in trajectories(2)]) is None
    assert (value := nll(made, trajectories(2))) is not None and value > 0


def run_of(tmp_path: Path, data: Sequence[Sequence[Trajectory]]) -> dict[str, Any]:
    class Steps:
        def next(self, step: int) -> Sequences:
            return Sequences(by_teacher=data[step])

    made = learner("seqkd")
    run = RunDir.open("kd", {}, root=tmp_path)
    return run_training(OpenRun(run), made, Steps(), Plan(len(data)), evaluate=dict, protocol=made.codec.protocol)


def test_steps_that_train_nothing_are_counted_and_not_claimed(tmp_path: Path) -> None:
    some, none = trajectories(2), [unwritten(t) for t in trajectories(2)]
    result = run_of(tmp_path / "a", [some, none, some])
    assert (result.steps, result.untrained_steps) == (3, 1)
    with pytest.raises(TrainingError, match="nothing was trained: no text was written in any of 2 steps"):
        run_of(tmp_path / "b", [none, none])


def test_a_guard_sees_beyond_what_is_no_number() -> None:
    guard = Guard(CollapseSettings(window=2))
    for step, value in enumerate([1.0, math.nan, 1.0, math.nan, 6.0, math.nan, 7.0]):
        rung = guard.look(step, {"teacher_k1_wrong": value})
    assert [alarm.name for alarm in rung] == ["far from the teacher"] and rung[0].values == (6.0, 7.0)
    guard = Guard(CollapseSettings(window=1))
    (alarm,) = guard.look(1, {"behavior_kl": math.inf})
    json.dumps(alarm.to_json() | guard.state_dict(), allow_nan=False)


def test_json_holds_no_nan() -> None:
    row = {"a": math.nan, "b": [1.0, -math.inf, {"c": (math.inf, 2)}], "d": "NaN", "e": None, "f": True}
    expected = {"a": None, "b": [1.0, None, {"c": [None, 2]}], "d": "NaN", "e": None, "f": True}
    assert json.loads(dump_line(row)) == json.loads(to_json(row, indent=1)) == expected
    assert to_json({"x": 0.1}) == '{"x": 0.1}'


def test_intervals_of_values_without_spread() -> None:
    unseen = wilson(0, 10).high
    assert bootstrap_interval([0.5] * 10) == pytest.approx(Interval(0.5 - unseen / 2, 0.5 + unseen / 2))
    one = paired_difference({"q": 0.0}, {"q": 1.0})
    assert (one.difference, one.p_value) == (1.0, 1.0) and one.interval.low < 0 < one.interval.high == 1.0
    alike = paired_difference({str(n): 1.0 for n in range(10)}, {str(n): 1.0 for n in range(10)})
    assert (alike.difference, alike.better, alike.worse, alike.p_value) == (0.0, 0, 0, 1.0)
    assert (alike.interval.low, alike.interval.high) == pytest.approx((-unseen, unseen))
    assert share_interval([(1, 2)]).low < 0.5 < share_interval([(1, 2)]).high
    assert share_interval([(1, 1)]).low < 0.3 and share_interval([(0, 1)]).high > 0.7


def test_the_mean_difference_of_sets_of_which_one_has_no_spread() -> None:
    same = {str(n): 1.0 for n in range(20)}
    other = {str(n): float(n % 2) for n in range(20)}
    mean, interval = mean_paired_difference([(same, same), (other, same)])
    assert mean == 0.25 and interval.low < 0.25 < interval.high < 1
    mean, interval = mean_paired_difference([(same, same)])
    assert mean == 0.0 and interval.low == pytest.approx(-wilson(0, 20).high) == -interval.high


@pytest.mark.parametrize("over_groups", [False, True])
def test_nested_intervals_without_spread_or_without_questions(over_groups: bool) -> None:
    found = nested_interval([np.zeros(5, dtype=int), np.zeros(5, dtype=int)], over_groups=over_groups)
    assert (found.low, found.high) == pytest.approx((-wilson(0, 10).high, wilson(0, 10).high))
    for groups in ([], [np.zeros(0, dtype=int)], [np.array([1, 0]), np.zeros(0, dtype=int)]):
        with pytest.raises(ValueError, match="nothing"):
            nested_interval(groups, over_groups=over_groups)
