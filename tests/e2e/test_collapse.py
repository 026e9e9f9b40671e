"""A run that collapses because of its learning rate alone is caught and rolled back; interrupted, it ends the same.

Distillation and reinforcement learning alike, from a student that knows its questions by heart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.offline import ROLLOUT
from transformers import AutoTokenizer, Qwen2ForCausalLM

from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_list import VALIDATION_FILE
from dgpo_cli.core.run_metrics import read_metrics
from dgpo_cli.core.types import question_to_json
from dgpo_cli.errors import TrainingError
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import save_model
from dgpo_cli.offline.demonstrations import write_demonstrations
from dgpo_cli.offline.world.demonstrator import Demonstrator, Fault
from dgpo_cli.offline.world.files import write_world
from dgpo_cli.offline.world.sizes import ModelSize, qwen2_config
from dgpo_cli.offline.world.world import WorldSize, build_world
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.collapse import CollapseSettings
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.rl import run_rl
from dgpo_cli.training.run.lifecycle import TrainingResult
from dgpo_cli.training.settings import KDSettings, RLSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RLSettings:
    """A student that knows 24 questions by heart, and training on them."""
    folder = tmp_path_factory.mktemp("collapse")
    world = build_world(0, WorldSize(demonstrations=20, train=60, validation=10, test=10))
    write_world(world, folder / "world")
    build_index(folder / "world" / "corpus.jsonl", folder / "index")
    tokenizer = AutoTokenizer.from_pretrained(folder / "world" / "tokenizer")
    torch.manual_seed(0)
    save_model(
        folder / "start", Qwen2ForCausalLM(qwen2_config(ModelSize(64, 2, 4), len(tokenizer))), tokenizer, TINYWORLD
    )
    questions = [question for question in world.questions["train"] if question.hops == 1][:24]
    write_jsonl_atomic(folder / "questions.jsonl", [question_to_json(question) for question in questions])
    write_demonstrations(
        Demonstrator(world, Fault({})),
        questions,
        folder / "demonstrations.jsonl",
        codec=Codec(tokenizer, TINYWORLD),
        retriever=open_index(folder / "index").retriever,
        settings=ROLLOUT,
    )
    cold = KDSettings(
        student=str(folder / "start"),
        teacher=str(folder / "start"),
        trajectories=str(folder / "demonstrations.jsonl"),
        method="seqkd",
        lr=5e-3,
        epochs=60,
        batch_size=24,
        validation_share=0.0,
        eval_every=60,
        device="cpu",
    )
    with RunDir.open("kd", {}, out=folder / "student") as run:
        run_kd(cold, run, keep=1, progress=None)
    return RLSettings(
        student=str(folder / "student"),
        teacher=None,
        index=str(folder / "index"),
        questions=str(folder / "questions.jsonl"),
        eval_data=str(folder / "questions.jsonl"),
        method="ppo",
        steps=16,
        batch_size=24,
        mini_batches=2,
        lr=1e-4,
        warmup_steps=0,
        critic_lr=1e-3,
        critic_warmup_lr_steps=0,
        eval_every=4,
        eval_limit=24,
        save_every=4,
        device="cpu",
        rollout=ROLLOUT,
        on_collapse="rollback",
        # One rollback goes from the rate that ruins the student to one that does not.
        collapse=CollapseSettings(window=3, lr_factor=0.05),
    )


RUINOUS = 0.05


def train(settings: RLSettings, folder: Path, **options: Any) -> TrainingResult:
    with RunDir.open("rl", {"lr": settings.lr, "do": settings.on_collapse}, out=folder) as run:
        return run_rl(settings, run, keep=1, progress=None, **options)


def em(folder: Path) -> list[float]:
    return [row["eval_em"] for row in read_metrics(folder) if "eval_em" in row]


def test_a_ruinous_learning_rate_is_caught_and_rolled_back(settings: RLSettings, tmp_path: Path) -> None:
    healthy = train(settings, tmp_path / "healthy")
    assert healthy.alarms == healthy.rollbacks == 0
    start = em(tmp_path / "healthy")[0]
    assert start > 0.8

    told: list[str] = []
    warned = train(replace(settings, lr=RUINOUS, on_collapse="warn"), tmp_path / "warned", warn=told.append)
    assert warned.rollbacks == 0
    assert told
    assert em(tmp_path / "warned")[-1] < 0.1  # the learning rate alone did it

    told.clear()
    saved = train(replace(settings, lr=RUINOUS), tmp_path / "saved", warn=told.append)
    alarms = [row for row in read_metrics(tmp_path / "saved") if "alarm" in row]
    assert saved.rollbacks >= 1
    assert saved.alarms == len(alarms)
    assert "back to the weights of step 0, learning rates times 0.05" in alarms[0]["action"]
    assert alarms[0]["action"] in told[0]
    rates = [row["policy_lr"] for row in read_metrics(tmp_path / "saved") if "policy_lr" in row]
    assert rates[0] == RUINOUS
    assert rates[-1] == pytest.approx(RUINOUS * 0.05**saved.rollbacks)
    assert em(tmp_path / "saved")[-1] > 0.8  # and it goes on from there
    assert not (tmp_path / "saved" / "rollback").exists()
    assert len((tmp_path / "saved" / VALIDATION_FILE).read_text().splitlines()) == 25  # header and 24 episodes


@pytest.fixture(scope="module")
def distillation(settings: RLSettings) -> KDSettings:
    """The same student goes on learning from the trajectories that it learned from."""
    return KDSettings(
        student=settings.student,
        teacher=settings.student,
        trajectories=str(Path(settings.questions).parent / "demonstrations.jsonl"),
        method="seqkd",
        lr=1e-3,
        steps=16,
        batch_size=24,
        schedule="constant",
        validation_share=0.25,
        index=settings.index,
        eval_every=4,
        device="cpu",
        rollout=ROLLOUT,
        on_collapse="rollback",
        collapse=CollapseSettings(window=3, lr_factor=0.02),
    )


def distil(settings: KDSettings, folder: Path, **options: Any) -> TrainingResult:
    with RunDir.open("kd", {"lr": settings.lr, "do": settings.on_collapse}, out=folder) as run:
        return run_kd(settings, run, keep=1, **({"progress": None} | options))


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def test_a_distillation_ruined_by_its_learning_rate_is_caught_and_rolled_back(
    distillation: KDSettings, tmp_path: Path
) -> None:
    healthy = distil(distillation, tmp_path / "healthy")
    assert healthy.alarms == healthy.rollbacks == 0
    assert logged(tmp_path / "healthy", "eval_nll")[-1] < 0.2
    assert all(0.1 < entropy < 1 for entropy in logged(tmp_path / "healthy", "entropy"))

    told: list[str] = []
    warned = distil(replace(distillation, lr=RUINOUS, on_collapse="warn"), tmp_path / "warned", warn=told.append)
    assert (warned.rollbacks, len(told)) == (0, 1)  # it rings once: the loss never gets back to within a nat
    assert "loss blows up at step 4" in told[0]
    assert logged(tmp_path / "warned", "eval_nll")[-1] > 3  # the learning rate alone did it

    told.clear()
    saved = distil(replace(distillation, lr=RUINOUS), tmp_path / "saved", warn=told.append)
    assert (saved.alarms, saved.rollbacks) == (1, 1)
    assert "back to the weights of step 0, learning rates times 0.02" in told[0]
    assert logged(tmp_path / "saved", "policy_lr") == [RUINOUS] * 4 + [pytest.approx(RUINOUS * 0.02)] * 12
    losses = logged(tmp_path / "saved", "nll")
    assert min(losses[1:4]) > 3
    assert losses[4] == pytest.approx(losses[0])  # the same weights and the same batch
    assert max(losses[4:]) < 0.2
    assert logged(tmp_path / "saved", "eval_nll")[-1] < 0.2  # and it goes on from there
    assert not (tmp_path / "saved" / "rollback").exists()


def test_what_the_student_writes_while_it_distils_is_watched_too(distillation: KDSettings, tmp_path: Path) -> None:
    """A rate that the teacher's text would survive for a while: the student's own turns break first or at once."""
    own = replace(distillation, lr=RUINOUS, method="gkd", on_collapse="stop")
    with pytest.raises(TrainingError, match=r"training collapsed: .*invalid actions at step") as stopped:
        distil(own, tmp_path / "own")
    assert "--on-collapse rollback" in (stopped.value.hint or "")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [5, 9])
def test_an_interrupted_rollback_ends_with_the_same_weights(settings: RLSettings, tmp_path: Path, at: int) -> None:
    ruined = replace(settings, lr=RUINOUS, steps=12)
    train(ruined, tmp_path / "whole")
    calls = 0

    def die(done: int, total: int, note: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise Killed

    config = {"lr": ruined.lr, "do": ruined.on_collapse}
    with pytest.raises(Killed), RunDir.open("rl", config, out=tmp_path / "cut") as run:
        run_rl(ruined, run, keep=1, progress=die)
    train(ruined, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "state/step-00000012/student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    shown = [[row for row in read_metrics(tmp_path / name) if "alarm" in row] for name in ("whole", "cut")]
    assert shown[0] == shown[1] != []


@pytest.mark.parametrize("at", [2, 6, 13])
def test_an_interrupted_distillation_ends_with_the_same_weights(
    distillation: KDSettings, tmp_path: Path, at: int
) -> None:
    """Killed before its first saved state, before a rollback is followed by one, and long after."""
    ruined = replace(distillation, lr=RUINOUS)
    distil(ruined, tmp_path / "whole")
    calls = 0

    def die(done: int, total: int, note: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise Killed

    with pytest.raises(Killed):
        distil(ruined, tmp_path / "cut", progress=die)
    distil(ruined, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "best/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    whole, cut = (load_file(tmp_path / name / "state/step-00000016/student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    shown = [[row for row in read_metrics(tmp_path / name) if "alarm" in row] for name in ("whole", "cut")]
    assert shown[0] == shown[1] != []


def test_stop_ends_the_run_and_names_the_way_out(settings: RLSettings, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="training collapsed") as stopped:
        train(replace(settings, lr=RUINOUS, on_collapse="stop"), tmp_path / "stopped")
    assert "--on-collapse rollback" in (stopped.value.hint or "")
