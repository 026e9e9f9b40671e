"""Numbers at the edge of their range: refused before anything runs, or right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import write_one_trajectory

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.console import Console
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


@pytest.mark.parametrize("place", ["folder", "gone/kept.jsonl", "questions.jsonl", "link.jsonl", "other.jsonl"])
def test_an_audit_writes_over_nothing_that_it_reads(dgpo: Dgpo, offline: Any, folder: Path, place: str) -> None:
    (folder / "folder").mkdir()
    questions = folder / "questions.jsonl"
    questions.write_text(offline.questions("test").read_text())
    (folder / "link.jsonl").symlink_to(questions)
    (folder / "other.jsonl").write_text("mine")
    before = questions.read_text()
    ended = dgpo("audit", "questions.jsonl", "--index", str(offline.index), "--write", place)
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert place.partition("/")[0] in ended.errors[0] and questions.read_text() == before
    assert (folder / "other.jsonl").read_text() == "mine"


@pytest.mark.parametrize("seed", [2**63, -(2**63), 10**40])
@pytest.mark.parametrize("argv", ["quickstart --dry-run --seed", "eval --seed", "chat --seed", "rl --dry-run --seed"])
def test_a_seed_of_more_than_64_bits_is_refused(dgpo: Dgpo, offline: Any, argv: str, seed: int) -> None:
    places = [
        "--student",
        str(offline.student),
        "--index",
        str(offline.index),
        "--data",
        str(offline.questions("train")),
    ]
    ended = dgpo(*argv.split(), str(seed), *(places if argv.startswith("rl") else []))
    assert ended.status == 1 and len(ended.errors) == 1 and "too large" in ended.errors[0], ended.err


@pytest.mark.parametrize("fresh", [[], ["--fresh"], ["--replace"]])
@pytest.mark.parametrize("part", ["index", "runs", "world", "models", "results.json"])
def test_a_quickstart_leaves_alone_what_it_did_not_make(dgpo: Dgpo, folder: Path, part: str, fresh: list[str]) -> None:
    own = folder / part if "." in part else folder / part / "own"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    for out in (".", str(folder)):
        ended = dgpo("quickstart", "--out", out, *fresh, "--device", "cpu")
        assert ended.status == 1 and len(ended.errors) == 1, ended.err
        assert f"{part} was not made by this command" in " ".join(ended.err.split())
    assert own.read_text() == "mine" and [path.name for path in folder.iterdir()] == [part]


def test_a_folder_of_an_earlier_version_is_known_by_its_world(folder: Path) -> None:
    from dgpo_cli.core.recipes import shipped
    from dgpo_cli.offline.project import Project

    (folder / "world").mkdir()
    (folder / "world" / "world.json").write_text(json.dumps({"digest": "d", "seed": 0}))
    (folder / "runs").mkdir()
    project = Project(folder, seed=0, device="cpu", say=print, bar=Console().progress, settings=shipped("quickstart"))
    with project.alone():
        project.forget()
    assert not (folder / "world").exists()
    (folder / "runs").mkdir()
    with project.alone():
        pass


ASKED = {
    "eval": ("eval", "--bench", "tinyworld", "--bench-dir", "{world}", "--dry-run"),
    "chat": ("chat",),
    "distill-data": ("distill-data", "--data", "{train}", "--dry-run"),
}


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize("limit", ["max_prompt_tokens=3", "max_tokens=2"])
def test_a_prompt_that_cannot_fit_is_one_line_before_a_model_is_loaded(
    dgpo: Dgpo, offline: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, limit: str
) -> None:
    """Also where an observation's share of so short an episode would be none, and where the questions come later."""
    from tests.tiny import bpe_tokenizer, qwen

    from dgpo_cli.formats.tags import DEFAULT
    from dgpo_cli.models import load

    tokenizer = bpe_tokenizer(chat=True)
    load.save_model(folder / "model", qwen(len(tokenizer)), tokenizer, DEFAULT)
    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("loaded"))
    model = "--teacher" if command == "distill-data" else "--model"
    argv = [part.format(world=offline.folder / "world", train=offline.questions("train")) for part in ASKED[command]]
    ended = dgpo(*argv, model, str(folder / "model"), "--index", str(offline.index), "-o", f"rollout.{limit}")
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert ended.errors[0].startswith("error: no prompt fits: the shortest has "), ended.err


@pytest.mark.parametrize("command", ["eval", "distill-data"])
def test_results_have_room_in_short_episodes_whoever_asks(dgpo: Dgpo, offline: Any, folder: Path, command: str) -> None:
    argv = [part.format(world=offline.folder / "world", train=offline.questions("train")) for part in ASKED[command]]
    model = "--teacher" if command == "distill-data" else "--model"
    where = (model, str(offline.student), "--index", str(offline.index), "-o", "rollout.max_tokens=80", "--json")
    told = json.loads(dgpo(*argv, *where).out)
    assert told.get("rollout", told)["max_observation_tokens"] == 20


def test_a_model_that_learned_without_a_search_is_read_again() -> None:
    from dgpo_cli.formats.protocol import Protocol
    from dgpo_cli.formats.tags import DEFAULT

    trained = DEFAULT.with_limits({"max_turns": 0})
    assert Protocol.from_json(trained.to_json()) == trained
