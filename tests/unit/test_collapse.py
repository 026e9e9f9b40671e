"""Each alarm on a series made by hand: when it rings, what it says it saw, and when it must be silent."""

from __future__ import annotations

import json

import pytest

from dgpo_cli.errors import ConfigError
from dgpo_cli.training.collapse import Alarm, CollapseSettings, Guard, rules


def ringing(metric: str, values: list[float | None], **settings: float) -> list[Alarm]:
    """Alarms of a run whose steps, from 1, log `metric` (None: not logged)."""
    guard = Guard(CollapseSettings(**({"window": 3} | settings)))  # type: ignore[arg-type]
    rows = [{} if value is None else {metric: value} for value in values]
    return [alarm for step, row in enumerate(rows, start=1) for alarm in guard.look(step, row)]


# (alarm, metric, healthy, collapsed, threshold): one step after the healthy ones, the window still holds one of those.
CASES = [
    ("reward gone", "reward", 0.4, 0.0, 0.01),
    ("entropy out of its band", "entropy", 0.2, 0.0001, 0.0005),
    ("entropy out of its band", "entropy", 0.2, 7.0, 2.2),
    ("policy jumps", "behavior_kl", 0.01, 2.0, 0.5),
    ("far from the teacher", "teacher_k1_wrong", 1.0, 9.0, 5.0),
    ("far from the teacher (exact KL)", "gated_reverse_kl", 1.0, 9.0, 5.0),
    ("blank queries", "blank_queries", 0.0, 1.0, 0.5),
    ("repeated queries", "repeated_queries", 0.1, 1.0, 0.5),
    ("invalid actions", "valid_actions", 0.99, 0.1, 0.5),
]


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in rules(CollapseSettings())} == {case[0] for case in CASES} | {
        "right answers unlearned",
        "loss blows up",
        "validation loss blows up",
    }


@pytest.mark.parametrize(("name", "metric", "healthy", "collapsed", "threshold"), CASES, ids=lambda v: str(v))
def test_an_alarm_rings_once_and_says_what_it_saw(
    name: str, metric: str, healthy: float, collapsed: float, threshold: float
) -> None:
    alarms = ringing(metric, [healthy] * 4 + [collapsed] * 6)
    assert [alarm.name for alarm in alarms] == [name]
    alarm = alarms[0]
    assert (alarm.metric, alarm.threshold) == (metric, threshold)
    assert alarm.mean == pytest.approx(sum(alarm.values) / 3)
    assert (alarm.mean < threshold) == (collapsed < threshold)
    assert str(alarm.step) in str(alarm)
    assert f"{collapsed:.4g}" in str(alarm)


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ([4.2, 4.1, 1.8, 4.2, 4.1, 4.3, 4.2, 4.2], None),  # one step of a few short texts
        ([4.2, 4.1, 1.8, 1.7, 4.2, 4.1, 4.3], 3.8),  # two are what the run had learned
        ([0.0, 4.2, 4.1, 4.2, 4.3, 4.2, 4.1], None),  # a raw model whose first step wrote next to nothing
        ([0.0, 4.2, 4.1, 4.2, 7.0, 7.1, 7.2], 6.2),
        ([0.3, 3.0, 5.0, 7.0, 9.0], 2.3),  # ruined at once
    ],
)
def test_the_lowest_so_far_is_that_of_no_single_odd_step(values: list[float], threshold: float | None) -> None:
    alarms = ringing("entropy", list(values))
    assert [alarm.threshold for alarm in alarms] == ([] if threshold is None else [pytest.approx(threshold)])


@pytest.mark.parametrize(("name", "metric", "healthy", "collapsed", "threshold"), CASES, ids=lambda v: str(v))
def test_what_was_never_healthy_or_always_is_raises_none(
    name: str, metric: str, healthy: float, collapsed: float, threshold: float
) -> None:
    assert ringing(metric, [healthy] * 10) == []
    assert ringing(metric, [collapsed] * 10) == [] or name == "policy jumps"


def test_a_policy_that_jumps_from_the_first_update_is_seen() -> None:
    (alarm,) = ringing("behavior_kl", [2.0, 1.0, 1.5, 1.5, 1.5, 1.5])
    assert (alarm.step, alarm.values, alarm.threshold) == (3, (2.0, 1.0, 1.5), 0.5)


def test_reward_must_have_been_alive_and_one_bad_step_is_no_collapse() -> None:
    assert ringing("reward", [0.04, 0.04, 0.0, 0.0, 0.0, 0.0]) == []
    assert ringing("reward", [0.4, 0.0, 0.0, 0.4, 0.0, 0.0, 0.4]) == []
    (alarm,) = ringing("reward", [0.4, 0.4, 0.0, 0.02, 0.0])
    assert (alarm.step, alarm.values) == (5, (0.0, 0.02, 0.0))  # mean 0.0067


def test_an_alarm_rings_again_only_after_a_recovery() -> None:
    alarms = ringing("reward", [0.4, 0, 0, 0, 0, 0, 0, 0, 0.4, 0, 0, 0, 0])
    assert [alarm.step for alarm in alarms] == [4, 12]


def test_falling_log_probability_is_measured_from_the_best_mean() -> None:
    # Means of three: -1, -1, -0.5 (the best), then -0.5 - 2/3, then -0.5 - 4/3, which is more than 1 below.
    values = [-1.0, -1.0, -1.0, -0.5, -0.5, -0.5, -2.5, -2.5]
    (alarm,) = ringing("right_logprob", list(values))
    assert (alarm.step, alarm.threshold) == (8, -1.5)
    assert alarm.mean == pytest.approx((-0.5 - 2.5 - 2.5) / 3)
    assert ringing("right_logprob", [-5.0, -4.0, -3.0, -2.0, -1.0]) == []


def test_a_loss_is_measured_from_its_lowest_value() -> None:
    (alarm,) = ringing("nll", [0.5, 2.0, 1.75, 1.5, 1.75, 3.0, 1.6])  # 1.5 is not above 0.5 + 1
    assert (alarm.name, alarm.step, alarm.values, alarm.threshold) == ("loss blows up", 7, (1.75, 3.0, 1.6), 1.5)
    assert ringing("nll", [6.0, 5.0, 4.0, 2.0, 1.0, 1.5, 1.9]) == []  # the mean of 5, 4, 2 is above 2 + 1
    assert ringing("nll", [0.5] * 9) == []
    assert [a.step for a in ringing("nll", [0.5, 9, 9, 9, 9, 9, 9, 0.4, 9, 9, 9], nll_rise=2.0)] == [4, 11]


@pytest.mark.parametrize(("metric", "alarm"), [("entropy", "entropy out"), ("teacher_k1_wrong", "far from")])
def test_what_differs_between_models_is_judged_by_the_runs_own_start(metric: str, alarm: str) -> None:
    raw = [4.0, 4.4, 4.1, 4.3, 4.2, 4.4, 4.4]  # nats per token of a raw model of 49,152 words
    assert ringing(metric, [*raw]) == [] and ringing(metric, [v + 2 for v in raw]) == []
    assert ringing(metric, [*raw, 3.0, 1.5, 0.4, 0.2, 0.2, 0.2]) == []  # it learns
    assert [a.name.startswith(alarm) for a in ringing(metric, [*raw, 9.0, 9.0, 9.0])] == [True]
    assert [a.name.startswith(alarm) for a in ringing(metric, [*raw, 0.2, 0.2, 0.2, 4.4, 4.4, 4.4])] == [True]


def test_one_validation_far_above_the_lowest_is_enough() -> None:
    (alarm,) = ringing("eval_nll", [2.0, None, 0.75, None, 1.7, 1.8, 3.0, 3.0])
    assert (alarm.name, alarm.step, alarm.values) == ("validation loss blows up", 6, (1.8,))
    assert alarm.threshold == 1.75


def test_after_a_rollback_the_guard_compares_with_what_it_goes_back_to() -> None:
    guard = Guard(CollapseSettings(window=3))
    seen = [6.0, 0.5, 5.0, 5.0, 5.0, 5.0]
    assert [len(guard.look(step, {"nll": nll})) for step, nll in enumerate(seen)] == [0, 0, 0, 0, 1, 0]
    guard.roll_back()  # to the weights of the first step
    again = [6.0, 5.8, 5.6, 5.4, 9.0, 9.0, 9.0]
    assert [len(guard.look(step, {"nll": nll})) for step, nll in enumerate(again)] == [0, 0, 0, 0, 0, 0, 1]


def test_a_step_without_the_metric_is_passed_over() -> None:
    (alarm,) = ringing("right_logprob", [-0.5, None, -0.5, None, -0.5, -3.0, None, -3.0])
    assert (alarm.step, alarm.values) == (8, (-0.5, -3.0, -3.0))


def test_a_restored_guard_rings_as_the_undisturbed_one() -> None:
    rows = [
        {"reward": r, "entropy": e, "right_logprob": -e}
        for r, e in zip([0.5, 0.4, 0.3, *[0.0] * 6], range(9), strict=True)
    ]
    whole = Guard(CollapseSettings(window=3))
    expected = [str(alarm) for step, row in enumerate(rows) for alarm in whole.look(step, row)]
    assert len(expected) >= 3
    for cut in range(1, 9):
        first, second = Guard(CollapseSettings(window=3)), Guard(CollapseSettings(window=3))
        seen = [str(alarm) for step, row in enumerate(rows[:cut]) for alarm in first.look(step, row)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        seen += [str(alarm) for step, row in enumerate(rows[cut:], start=cut) for alarm in second.look(step, row)]
        assert seen == expected
        assert second.state_dict() == whole.state_dict()


def test_rollbacks_lower_the_rate_each_time_and_end() -> None:
    guard = Guard(CollapseSettings(lr_factor=0.5, max_rollbacks=2))
    assert [guard.roll_back(), guard.lr_scale] == [True, 0.5]
    assert [guard.roll_back(), guard.lr_scale] == [True, 0.25]
    assert [guard.roll_back(), guard.lr_scale, guard.rollbacks] == [False, 0.25, 2]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"lr_factor": 1.0}, {"lr_factor": 0.0}])
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        CollapseSettings(**wrong)  # type: ignore[arg-type]
