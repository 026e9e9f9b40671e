"""What `dgpo report --watch` answers: of runs that grow, are cut back or damaged, and of nothing outside of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.report_runs import ATTACK, episode
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.records import to_json
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.tail import Tail
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import keep_tokenizer
from dgpo_cli.objectives.base import Signals
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.run.kept_episodes import KeptEpisodes
from dgpo_cli.viewing import following
from dgpo_cli.viewing.episode_text import pieces
from dgpo_cli.viewing.watch import Watch

CODEC = Codec(bpe_tokenizer(), TINYWORLD)


def keep(run: RunDir, step: int, answer: str = "Lyon") -> None:
    """One episode of a step, about whose tokens something is known."""
    trajectory = episode(CODEC, step, answer)
    here = torch.tensor(trajectory.written).float()
    signals = Signals(behavior_logprobs=-0.5 * here, teacher_logprobs=-2.0 * here, advantages=0.25 * here)
    sample = Sample.of(trajectory, by_student=True, signals=signals)
    KeptEpisodes(run.path, CODEC, each=1, steps=10).add(step, [trajectory], [replace(sample, rewards=-0.125 * here)])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0  # every question to the server is one that reads
        return self.now


def watched(given: list[Path] | None = None, episodes: int = 10) -> Watch:
    return Watch(given or [], episodes=episodes, clock=Clock())


@pytest.fixture
def run(folder: Path):
    with RunDir.open("rl", {"method": "dgpo", "student": "s", "steps": 4}) as opened:
        keep_tokenizer(opened.path, CODEC.tokenizer)
        yield opened


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "f"
    tail = Tail(file, 1000)
    assert tail.read() == (False, [])
    file.write_bytes(b"one\ntw")
    assert tail.read() == (True, [(0, b"one")])
    assert tail.read() == (False, [])
    with open(file, "ab") as stream:
        stream.write(b"o\r\x0b\nthree\n")
    assert tail.read() == (False, [(4, b"two\r\x0b"), (10, b"three")])
    (tmp_path / "g").write_bytes(b"one\nTWO\nmore than there was\n")
    (tmp_path / "g").replace(file)
    assert tail.read() == (True, [(0, b"one"), (4, b"TWO"), (8, b"more than there was")])
    file.write_bytes(b"cut back\n")  # the same file, with another beginning
    assert tail.read() == (True, [(0, b"cut back")])
    file.unlink()
    assert tail.read() == (True, []) and tail.read() == (False, [])


def test_of_a_huge_file_its_end_is_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with open(file, "wb") as stream:
        stream.truncate(1 << 40)  # a hole of a terabyte
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nlast\n")
    tail = Tail(file, 100)
    assert tail.read() == (True, [((1 << 40) + 1, b"last")])
    with open(file, "ab") as stream:
        stream.write(b"x" * 200 + b"\nnext\n")
    assert [line.content for line in tail.read()[1]] == [b"next"]


def test_steps_and_episodes_appear_as_they_are_made(run: RunDir) -> None:
    watch = watched()
    assert [r.status for r in watch.state().runs] == ["running"]
    run.log(1, {"reward": 0.25, "seconds": 30.0})
    for step in (1, 2, 3, 4):
        run.log(1, {"alarm": f"alarm {step}", "metric": "reward", "mean": 0.0, "threshold": 0.5, "action": "warned"})
    keep(run, 1)
    assert [line.split(" (")[0] for line in watch.state().warnings] == [
        f"rl-0001, step 1: alarm {number}" for number in (2, 3, 4)
    ]
    first = watch.state().runs[0]
    assert (first.step, first.total, first.left, first.line) == (1, 4, "90 s", "reward 0.25")
    before = watch.run(first.number)
    assert before.curves["reward"].each == [[1], [0.25]]
    assert [e.key for e in before.episodes] == ["step 1/hand/q1/0"]
    assert watch.state().runs[0].revision == first.revision, "nothing came"
    run.log(2, {"reward": 0.5, "seconds": 60.0})
    keep(run, 2, f"Paris {ATTACK}")
    assert watch.state().runs[0].revision > first.revision
    after = watch.run(first.number)
    assert after.curves["reward"].each == [[1, 2], [0.25, 0.5]]
    assert [e.attempt.answer for e in after.episodes] == ["Lyon", f"Paris {ATTACK}"]


def test_a_token_has_its_values(run: RunDir) -> None:
    keep(run, 1)
    watch = watched()
    number = watch.state().runs[0].number
    shown = watch.episode(number, "step 1/hand/q1/0")
    assert shown is not None
    wrote = [step for step in shown.steps if step.values]
    assert [step.kind for step in wrote] == ["search", "think", "answer"]
    for step in wrote:
        assert step.pieces and "".join(step.pieces) == step.text and len(step.pieces) == step.tokens
        known = {name: set(values) for name, values in (step.values or {}).items()}
        assert known == {"logprobs": {-0.5}, "teacher_logprobs": {-2.0}, "kl": {1.5}, "advantages": {0.25},
                         "rewards": {-0.125}}  # fmt: skip
    assert watch.episode(number, "step 2/hand/q2/0") is None
    assert watch.episode(number + 1, "step 1/hand/q1/0") is None


def test_the_text_of_tokens_is_that_of_them_together() -> None:
    ids = CODEC.text_ids("naïve 東京 🙂")
    for cut in (ids, ids[:-1], ids[1:]):
        texts = pieces(cut, CODEC)
        assert len(texts) == len(cut) and "".join(texts) == CODEC.decode(cut)


def test_a_run_that_was_cut_back_goes_on_from_there(run: RunDir) -> None:
    watch = watched()
    for step in (1, 2, 3):
        run.log(step, {"reward": float(step)})
        keep(run, step)
    number = watch.state().runs[0].number
    run.cut_metrics(1)
    KeptEpisodes(run.path, CODEC, each=1, steps=10).cut(1)
    run.log(2, {"reward": 7.0})
    watch.state()
    now = watch.run(number)
    assert now.curves["reward"].each == [[1, 2], [1.0, 7.0]]
    assert [e.key for e in now.episodes] == ["step 1/hand/q1/0"]
    assert watch.episode(number, "step 3/hand/q3/0") is None


def test_only_the_last_episodes_and_steps_are_held(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST_ROWS", 2)
    watch = watched(episodes=2)
    for step in (1, 2, 3):
        run.log(step, {"reward": float(step)})
        keep(run, step)
    watch.state()
    now = watch.run(0)
    assert now.curves["reward"].each == [[2, 3], [2.0, 3.0]]
    assert [e.key for e in now.episodes] == ["step 2/hand/q2/0", "step 3/hand/q3/0"]


def test_damage_is_told_and_the_rest_is_shown(run: RunDir) -> None:
    run.log(1, {"reward": 0.25})
    keep(run, 1)
    with open(run.path / "metrics.jsonl", "a") as stream:
        stream.write('{"reward": 1}\n')
    with open(run.path / "rollouts.jsonl", "a") as stream:
        stream.write('{"key": "x", "step": 3}\n')
    Path("runs/broken").mkdir()
    Path("runs/broken/run.json").write_text("{")
    watch = watched()
    for _ in range(2):  # it is told for as long as it lasts
        state = watch.state()
        assert [r.name for r in state.runs] == ["rl-0001"]
        said = "\n".join(state.warnings)
        assert "runs/broken/run.json is damaged: not JSON" in said
        assert "metrics.jsonl, byte 28: `step`" in said
        assert "rollouts.jsonl, byte" in said and "not an episode" in said
    run.log(2, {"reward": 0.5})
    watch.state()
    assert watch.run(state.runs[0].number).curves["reward"].each == [[1, 2], [0.25, 0.5]]


def test_nothing_outside_the_runs_is_read(run: RunDir, folder: Path) -> None:
    run.log(1, {"reward": 0.25})
    secret = folder / "elsewhere"
    secret.mkdir()
    (secret / "metrics.jsonl").write_text('{"step": 9, "secret": 9}\n')
    header = json.dumps({"schema": "evaluation", "version": 1, "protocol": TINYWORLD.to_json()})
    made = episode(CODEC, 1, "secret")
    (secret / "hand.jsonl").write_text(f"{header}\n{json.dumps({'key': made.key} | made.to_json())}\n")
    with RunDir.open("eval", {"model": "m", "benchmarks": ["../../elsewhere/hand"]}) as other:
        (other.path / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    (run.path / "validation.jsonl").symlink_to(secret / "hand.jsonl")
    watch = watched()
    state = watch.state()
    answers = [state, *(watch.run(r.number) for r in state.runs)]
    assert len(answers) == 3 and "secret" not in to_json(answers)
    assert "metrics.jsonl leads out of the run's folder" in "\n".join(state.warnings)


def test_a_tokenizer_elsewhere_is_not_read(run: RunDir, folder: Path) -> None:
    keep(run, 1)
    (run.path / "tokenizer").rename(folder / "elsewhere")
    (run.path / "tokenizer").symlink_to(folder / "elsewhere")
    watch = watched()
    watch.state()
    with pytest.raises(ConfigError, match="the run keeps no tokenizer"):
        watch.episode(0, "step 1/hand/q1/0")


def test_named_runs_and_no_others(run: RunDir, folder: Path) -> None:
    with RunDir.open("rl", {"method": "ppo", "student": "s"}, fresh=True):
        pass
    assert [r.name for r in watched([Path("rl-0002")]).state().runs] == ["rl-0002"]
    assert len(watched().state().runs) == 2
    with pytest.raises(ConfigError, match="nothing is not a run folder"):
        watched([Path("nothing")])


def test_the_server_answers_under_its_own_name_only(run: RunDir) -> None:
    from fastapi.testclient import TestClient

    from dgpo_cli.viewing.watch_app import watch_app

    run.log(1, {"reward": float("nan"), "entropy": 0.5})
    keep(run, 1)
    client = TestClient(watch_app(watched()), base_url="http://127.0.0.1")
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    number = client.get("/state").json()["runs"][0]["number"]
    assert client.get(f"/runs/{number}").json()["curves"]["entropy"]["each"] == [[1], [0.5]]
    assert client.get(f"/runs/{number}/episode", params={"key": "step 1/hand/q1/0"}).json()["answer"] == "Lyon"
    for place in ("/runs/99", f"/runs/{number}/episode?key=../../run.json", "/runs/../../etc/passwd", "/openapi.json"):
        assert client.get(place).status_code == 404, place
    assert client.get("/runs/x").status_code == 422
    assert client.post("/state").status_code == 405
    assert client.get("/state", headers={"host": "evil.example"}).status_code == 400


def test_settings_without_effect_are_refused(dgpo) -> None:
    assert dgpo("report", "--watch", "--out", "x.html").errors == [
        "error: --watch writes no page, so --out has no effect"
    ]
    assert dgpo("report", "--port", "8123").errors == ["error: --port is the port of --watch"]


def test_runs_that_only_made_questions_are_not_followed(run: RunDir) -> None:
    with RunDir.open("make-questions", {"index": "i"}) as other:
        (other.path / "validation.jsonl").write_text('{"id": "1", "question": "Who?", "golden_answers": ["A"]}\n')
    state = watched().state()
    assert [one.name for one in state.runs] == ["rl-0001"] and state.warnings == []
