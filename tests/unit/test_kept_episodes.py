"""The sample of rollouts that `dgpo rl` keeps: what stands in it, how much, and how the report shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.report_runs import episode
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import keep_tokenizer
from dgpo_cli.objectives.base import Signals
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.run.kept_episodes import MAX_KEPT, KeptEpisodes
from dgpo_cli.training.settings import RLSettings
from dgpo_cli.viewing import report

CODEC = Codec(bpe_tokenizer(), TINYWORLD)


def kept(folder: Path, each: int, steps: int) -> KeptEpisodes:
    return KeptEpisodes(folder, CODEC, each=each, steps=steps)


def made(place: int, right: bool) -> tuple[Trajectory, Sample]:
    trajectory = episode(CODEC, place, "Lyon" if right else "Paris")
    here = torch.tensor(trajectory.written).float()
    signals = Signals(
        behavior_logprobs=-1.0 * here,
        teacher_logprobs=None if right else -3.5 * here,
        advantages=0.123456789 * here,
    )
    sample = Sample.of(trajectory, by_student=True, signals=signals)
    return trajectory, sample if right else replace(sample, rewards=0.25 * here)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()][1:]


def test_a_row_is_a_trajectory_with_what_the_step_knew_of_each_token(tmp_path: Path) -> None:
    pairs = [made(0, right=True), made(1, right=False)]
    kept(tmp_path, 16, 3).add(1, [t for t, _ in pairs], [s for _, s in pairs])
    right, wrong = rows(tmp_path)
    assert Trajectory.from_json(wrong) == pairs[1][0]
    written = [mark == "1" for mark in wrong["written"]]
    assert wrong["tokens"]["logprobs"] == [-1.0 if w else 0.0 for w in written]
    assert wrong["tokens"]["kl"] == [2.5 if w else 0.0 for w in written]
    assert wrong["tokens"]["advantages"] == [0.12346 if w else 0.0 for w in written]
    assert wrong["tokens"]["rewards"] == [0.25 if w else 0.0 for w in written]
    # The gate of the method spared the teacher the right one: nothing is known of it there, which is not KL 0.
    assert set(right["tokens"]) == {"logprobs", "advantages"}
    assert (wrong["score"]["total"], right["score"]["total"], wrong["step"]) == (0.0, 1.0, 1)


@pytest.mark.parametrize(("each", "steps", "at"), [(2, 6, [1, 2, 3, 4, 5, 6]), (400, 6, [1, 4]), (0, 6, [])])
def test_a_run_keeps_no_more_than_its_bound_spread_over_its_steps(
    tmp_path: Path, each: int, steps: int, at: list[int]
) -> None:
    trajectory, sample = made(0, right=False)
    batch = [replace(trajectory, sample=i) for i in range(420)]
    episodes = kept(tmp_path, each, steps)
    for step in range(1, steps + 1):
        episodes.add(step, batch, [sample] * len(batch))
    if not at:
        assert list(tmp_path.iterdir()) == []
        return
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [step for step in at for _ in range(each)]
    assert len(found) <= MAX_KEPT
    assert found[1]["sample"] - found[0]["sample"] == (210 if each == 2 else 1)  # over all of the batch


def test_what_a_killed_run_kept_beyond_its_saved_step_is_cut_back(tmp_path: Path) -> None:
    trajectory, sample = made(0, right=False)
    episodes = kept(tmp_path, 1, 10)
    episodes.cut(0)  # there is nothing yet
    for step in (1, 2):
        episodes.add(step, [trajectory], [sample])
    whole = (tmp_path / "rollouts.jsonl").read_bytes()
    episodes.add(3, [trajectory], [sample])
    with open(tmp_path / "rollouts.jsonl", "a") as stream:
        stream.write('{"key": "4/torn')
    kept(tmp_path, 1, 10).cut(2)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == whole
    kept(tmp_path, 1, 10).cut(2)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == whole


@pytest.mark.parametrize("step", ["null", '"a"', "Infinity", "1.5"])
def test_a_row_of_no_step_is_named_when_a_run_goes_on(tmp_path: Path, step: str) -> None:
    trajectory, sample = made(0, right=False)
    kept(tmp_path, 1, 10).add(1, [trajectory], [sample])
    file = tmp_path / "rollouts.jsonl"
    file.write_text(file.read_text().replace('"step": 1', f'"step": {step}', 1))
    with pytest.raises(InputError, match=r"rollouts\.jsonl:2: not a record of rollouts: `step` is"):
        kept(tmp_path, 1, 10).cut(1)


def test_kept_episodes_that_are_gone_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(tmp_path, 1, 10).cut(0)
    kept(tmp_path, 0, 10).cut(2)
    assert not caplog.text
    kept(tmp_path, 1, 10).cut(2)
    assert f"{tmp_path / 'rollouts.jsonl'} is gone: the episodes kept before step 3 are lost" in caplog.text


def test_the_report_shows_rollouts_apart_from_evaluations(tmp_path: Path) -> None:
    pairs = [made(0, right=True), made(1, right=False)]
    with RunDir.open("rl", {"method": "dgpo", "student": "s"}, out=tmp_path / "rl") as run:
        for step in (1, 2):
            kept(run.path, 2, 2).add(step, [t for t, _ in pairs], [s for _, s in pairs])
        keep_tokenizer(run.path, CODEC.tokenizer)
        run.finish({"steps": 2})
    content = report.gather([report.open_run(tmp_path / "rl")], 10)
    assert content.evaluations.rows == ()  # they are drawn at the temperature of training
    shown = {question.key: question for question in content.questions}
    assert set(shown) == {f"step {step}/{t.key}" for step in (1, 2) for t, _ in pairs}
    attempt = shown["step 2/hand/q1/0"].attempts["0"]
    assert (attempt.correct, attempt.reward) == (False, 0.0)
    assert attempt.steps[1].text == "<think>hm</think><search>where is it</search>"
    assert {question.bench for question in shown.values()} == {"hand, rollouts of training"}
    with open(tmp_path / "rl" / "rollouts.jsonl", "a") as stream:
        stream.write('{"key": "x", "step": 3}\n')
    with pytest.raises(InputError, match=r"rollouts\.jsonl:6: not an episode"):
        report.open_run(tmp_path / "rl")


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep_episodes = -1 is negative"):
        RLSettings(student="s", teacher=None, index="i", questions="q", keep_episodes=-1)
