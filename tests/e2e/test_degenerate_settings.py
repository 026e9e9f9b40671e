"""Numbers at the edge of their range: refused before anything runs, or right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import write_one_trajectory

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives import registry
from dgpo_cli.training.settings import RLSettings
from dgpo_cli.training.teacher.settings import DistillDataSettings

Dgpo = Callable[..., Any]
WRONG = [
    ("kd", "ce_weight", "inf"), ("kd", "kl_weight", "1e300"), ("opd", "coef", "inf"),
    ("minillm", "reward_scale", "inf"), ("minillm", "gamma", "1.5"), ("minillm", "gamma", "-1"),
    ("minillm", "clip", "-0.1"), ("minillm", "reward_clip", "-1"), ("minillm", "single_step_weight", "-1"),
    ("taid", "momentum", "1"), ("taid", "momentum", "-0.5"), ("distillm", "tolerance", "inf"),
    ("ppo", "kl_coef", "inf"), ("ppo", "entropy_coef", "1e300"), ("grpo", "clip_high", "-1"),
    ("grpo", "dual_clip", "0.5"), ("dgpo", "kl_coef", "inf"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "name", "value"), WRONG)
def test_an_option_that_no_loss_can_hold_is_refused(method: str, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        registry.create(method, {name: value})


@pytest.mark.parametrize(("method", "name"), [("ppo", "value_clip"), ("minillm", "reward_clip"), ("grpo", "dual_clip")])
def test_a_clip_may_be_infinite(method: str, name: str) -> None:
    registry.create(method, {name: "inf"})


def test_rewards_compare_drawn_answers_of_finite_worth() -> None:
    places = {"student": "s", "index": "i", "questions": "q"}
    RLSettings(**places, rollout=RolloutSettings(temperature=0.001))
    with pytest.raises(ConfigError, match=r"rollout\.temperature = 0"):
        RLSettings(**places, rollout=RolloutSettings(temperature=0))
    for weight in (float("inf"), float("nan"), float("-inf")):
        with pytest.raises(ConfigError, match=r"reward\.em"):
            RLSettings(**places, reward={"em": weight})


def test_several_greedy_attempts_of_a_teacher_are_one() -> None:
    greedy = RolloutSettings(temperature=0)
    DistillDataSettings(teacher="t", index="i", questions="q", rollout=greedy)
    with pytest.raises(ConfigError, match="3 samples at temperature 0"):
        DistillDataSettings(teacher="t", index="i", questions="q", rollout=greedy, samples=3)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 9e-4])
def test_a_temperature_that_32_bits_cannot_divide_by_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        RolloutSettings(temperature=temperature)


def test_greedy_episodes_of_distillation_train_at_temperature_one(dgpo: Dgpo, offline: Any, folder: Path) -> None:
    data = write_one_trajectory(offline, folder / "t.jsonl")
    small = [
        f"-orollout.{name}={value}" for name, value in (("max_new_tokens", 8), ("max_tokens", 120), ("max_turns", 1))
    ]
    models = ["--student", str(offline.student), "--teacher", str(offline.teacher), "--index", str(offline.index)]
    once = ["--steps", "1", "--batch-size", "1", "--out", "run", "--device", "cpu", "-orollout.temperature=0"]
    ended = dgpo("kd", "--method", "opd", "--data", str(data), *models, *once, *small)
    assert ended.status == 0, ended.err
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1 and "loss" in " ".join(rows[0])


@pytest.mark.parametrize("place", ["folder", "gone/kept.jsonl", "questions.jsonl", "link.jsonl"])
def test_an_audit_writes_over_nothing_that_it_reads(dgpo: Dgpo, offline: Any, folder: Path, place: str) -> None:
    (folder / "folder").mkdir()
    questions = folder / "questions.jsonl"
    questions.write_text(offline.questions("test").read_text())
    (folder / "link.jsonl").symlink_to(questions)
    before = questions.read_text()
    ended = dgpo("audit", "questions.jsonl", "--index", str(offline.index), "--write", place)
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert place.partition("/")[0] in ended.errors[0] and questions.read_text() == before
