"""Several processes train as one does: the same episodes, the same losses, nearly the same weights."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch
from tests.e2e.test_resume import (  # noqa: F401 - a fixture
    Killed,
    KilledAt,
    kd_settings,
    logged,
    rl_settings,
    train,
    trajectories,
    weights,
)
from tests.processes import together
from torch.distributed.tensor import DTensor

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.types import Score
from dgpo_cli.errors import DgpoError, TrainingError
from dgpo_cli.formats.base import Turn
from dgpo_cli.formats.tags import Tags
from dgpo_cli.models.devices import leave, world
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.rewards import exact_match
from dgpo_cli.training import credit, loop, step
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.rl import run_rl
from dgpo_cli.training.run import lifecycle

SLOW = pytest.mark.slow
ROUNDING = {"rel": 1e-4, "abs": 2e-6}  # of losses: sums in another order, then some steps of Adam with them


@pytest.fixture(autouse=True)
def lively(monkeypatch):
    """Untrained models neither search nor answer: here some turns search, some episodes are right."""

    def parse(_, text, *, ended):
        return Turn(text, "search" if len(text) % 2 else "answer", text[:20])

    def score(question, trajectory):
        right = sum(trajectory.token_ids) % 3 == 0
        return Score(float(right), correct=right, parts={"em": float(right)})

    monkeypatch.setattr(Tags, "parse", parse)
    monkeypatch.setattr(exact_match, "score", score)


def work(kind, settings, out, progress=None):
    """One process's part of a run: its episodes, how many sequences it took through the student, its last weights."""
    seen, learners, taken = [], [], []

    def spy(module, name, note):
        original = getattr(module, name)

        def noted(*arguments, **named):
            result = original(*arguments, **named)
            note(arguments, result)
            return result

        setattr(module, name, noted)

    spy(loop, "samples_of", lambda given, made: seen.extend(_episodes(given[1])))
    spy(step, "micro_batches", lambda given, made: taken.append(len(given[0])))
    spy(lifecycle, "train", lambda given, made: learners.append(given[0]))
    with lifecycle.open_together(lambda: RunDir.open(kind, asdict(settings), out=out)) as run:
        {"kd": run_kd, "rl": run_rl}[kind](settings, run, keep=1, progress=progress)
    leave()
    digest = hashlib.sha256()
    for parameter in learners[0].student.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    moments = [state["exp_avg"] for state in learners[0].policy_optimizer.adam.state.values()]
    local = sum((m.to_local() if isinstance(m, DTensor) else m).numel() for m in moments)
    return {
        "episodes": seen,
        "taken": taken,
        "weights": digest.hexdigest(),
        "run": type(run).__name__,
        "share of the moments": local / sum(p.numel() for p in learners[0].student.parameters()),
    }


def _episodes(sequences) -> Iterator[tuple]:
    for t in (*sequences.by_teacher, *sequences.by_student):
        yield t.key, t.token_ids, t.logprobs is not None, [c.query for c in t.searches], t.score and t.score.total


def assert_nearly_the_same(one, other, *, weights_within=2e-4):
    first, second = logged(one), logged(other)
    assert len(first) == len(second) > 3
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            exact = isinstance(value, str) or name in (
                "step",
                "em",
                "reward",
                "searches",
                "tokens",
                "written_tokens",
                "policy_lr",
                "eval_em",
            )
            assert b[name] == (value if exact else pytest.approx(value, **ROUNDING)), (a["step"], name)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, second[file][name], atol=weights_within, rtol=1e-3)


KD = {
    "kd": ("kd", {}),
    "taid, whose target follows the loss": ("taid", {}),
    "gkd, both write": ("gkd", {"seq_kd": True}),
    "distillm with replay": ("distillm", {"initial_share": 0.5, "tolerance": -100.0, "capacity": 3}),
    "opd": ("opd", {}),
}
RL = {
    "ppo": ("ppo", {}),
    "dgpo": ("dgpo", {}),
    "dgpo, exact KL of the wrong ones": ("dgpo", {"kl_form": "full-loss"}),
    "gspo": ("grpo", {"variant": "gspo"}),
    "dapo": ("grpo", {"variant": "dapo"}),
    "dr_grpo": ("grpo", {"variant": "dr_grpo"}),
}


@pytest.mark.parametrize(
    ("method", "options"),
    [pytest.param(*case, id=name, marks=() if name == "kd" else SLOW) for name, case in KD.items()],
)
def test_kd(offline, trajectories, tmp_path, method, options):  # noqa: F811
    compare("kd", kd_settings(offline, trajectories, method, **options), tmp_path, size=2)


@pytest.mark.parametrize(("method", "options"), [pytest.param(*case, id=name, marks=SLOW) for name, case in RL.items()])
def test_rl(offline, tmp_path, method, options):
    compare("rl", rl_settings(offline, method, **options), tmp_path, size=2)


def compare(kind, settings, tmp_path, *, size, **environment):
    alone = together(1, work, kind, settings, tmp_path / "one")[0]
    several = together(size, work, kind, settings, tmp_path / "several", **environment)
    assert [ended["run"] for ended in several] == ["RunDir"] + ["FollowedRun"] * (size - 1)
    assert len({ended["weights"] for ended in several}) == 1, "the processes ended with different weights"
    assert alone["episodes"] and all(ended["episodes"] == alone["episodes"] for ended in several)
    # Each sequence goes through one process in each update.
    assert [sum(counts) for counts in zip(*(ended["taken"] for ended in several), strict=True)] == alone["taken"]
    assert_nearly_the_same(tmp_path / "one", tmp_path / "several")
    return several


@SLOW
def test_more_processes_than_sequences(offline, tmp_path):
    """Four sequences in an update of five processes: one has nothing to do, and nobody waits for it in vain."""
    several = compare("rl", rl_settings(offline, "dgpo"), tmp_path, size=5)
    assert 0 in {n for ended in several for n in ended["taken"]}


SHARDED = {"ACCELERATE_USE_FSDP": "true"}
SPLIT = {
    "kd": ("kd", "kd", {}, {}, 2),
    "gkd, both write": ("kd", "gkd", {"seq_kd": True}, {}, 2),
    "dgpo in many passes, checkpointed": (
        *("rl", "dgpo", {"kl_form": "full-loss"}, {"gradient_checkpointing": True, "micro_batch_tokens": 200}, 2),
    ),
    "gspo": ("rl", "grpo", {"variant": "gspo"}, {}, 2),
    "more processes than sequences": ("rl", "dgpo", {}, {}, 5),
}


@pytest.mark.parametrize(
    ("kind", "method", "options", "more", "size"),
    [pytest.param(*case, id=name, marks=() if name == "kd" else SLOW) for name, case in SPLIT.items()],
)
def test_sharded_models(offline, trajectories, tmp_path, kind, method, options, more, size):  # noqa: F811
    if kind == "kd":
        settings = kd_settings(offline, trajectories, method, **options)
    else:
        settings = rl_settings(offline, method, **options)
    several = compare(kind, replace(settings, **more), tmp_path, size=size, **SHARDED)
    assert all(ended["share of the moments"] == pytest.approx(1 / size, abs=0.06) for ended in several)
    configs = [json.loads((tmp_path / name / "best" / "config.json").read_text()) for name in ("one", "several")]
    assert configs[0] == configs[1]


@SLOW
def test_a_sharded_head_of_its_own(offline, tmp_path):
    """Where the vocabulary head is not the input embedding, its gradient comes from the chunks of logits alone."""
    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    loaded.model.config.tie_word_embeddings = False
    untied = type(loaded.model)(loaded.model.config)
    save_model(tmp_path / "untied", untied, loaded.tokenizer, loaded.protocol)
    settings = replace(rl_settings(offline, "dgpo"), student=str(tmp_path / "untied"))
    compare("rl", settings, tmp_path, size=2, **SHARDED)


@SLOW
def test_a_sharded_run_goes_back_and_goes_on_whole(offline, tmp_path):
    """Its states are those of any run: one written in two parts is read by one process, and the other way round."""
    settings = rl_settings(offline, "ppo")
    guard = replace(settings.collapse, window=1, behavior_kl_max=-10.0, max_rollbacks=10)
    settings = replace(settings, on_collapse="rollback", collapse=guard)
    together(1, work, "rl", settings, tmp_path / "whole")
    for name, first, then in (("split first", SHARDED, {}), ("split then", {}, SHARDED)):
        together(2, dies, settings, tmp_path / name, **first)
        together(2, work, "rl", settings, tmp_path / name, **then)
        assert_nearly_the_same(tmp_path / "whole", tmp_path / name)


@SLOW
def test_micro_batches_do_not_move_the_sum(offline, tmp_path):
    """One sequence a pass, and few tokens a chunk: the loss is still divided by the weight of the whole update."""
    settings = rl_settings(offline, "ppo")
    small = replace(settings, micro_batch_tokens=1, chunk_tokens=7)
    together(1, work, "rl", settings, tmp_path / "one")
    together(2, work, "rl", small, tmp_path / "two")
    assert_nearly_the_same(tmp_path / "one", tmp_path / "two")


@SLOW
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (3, 2)], ids=lambda s: f"{s[0]} then {s[1]}")
def test_a_run_goes_on_in_another_number_of_processes(offline, tmp_path, sizes):
    settings = rl_settings(offline, "dgpo")
    together(1, work, "rl", settings, tmp_path / "whole")
    together(sizes[0], dies, settings, tmp_path / "killed")
    assert read_run(tmp_path / "killed")["status"] == "running"
    together(sizes[1], work, "rl", settings, tmp_path / "killed")
    assert_nearly_the_same(tmp_path / "whole", tmp_path / "killed")


def dies(settings, out):
    with pytest.raises(Killed):
        work("rl", settings, out, KilledAt(5))


@SLOW
def test_they_go_back_together(offline, tmp_path):
    """A collapse guard that rings at once: all go back to the first one's best state."""
    settings = rl_settings(offline, "ppo")
    guard = replace(settings.collapse, window=1, behavior_kl_max=-10.0, max_rollbacks=10)
    settings = replace(settings, on_collapse="rollback", collapse=guard)
    compare("rl", settings, tmp_path, size=2)
    rows = [row for row in logged(tmp_path / "several") if "action" in row]
    assert rows and "back to the weights of step" in rows[0]["action"]


@SLOW
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_with_one_message(offline, tmp_path, rank):
    told = together(2, fails_in, rl_settings(offline, "dgpo"), tmp_path / "run", rank)
    assert told == [("the card is on fire", "put it out"), None]
    with RunDir.open("rl", asdict(rl_settings(offline, "dgpo")), out=tmp_path / "run") as run:
        assert run.resumed, "the run that failed can go on"


def fails_in(settings, out, rank):
    original, calls = credit.signals.fill, []

    def fill(learner, *given):
        calls.append(1)
        if world().rank == rank and len(calls) == 4:
            raise TrainingError("the card is on fire", hint="put it out")
        return original(learner, *given)

    credit.signals.fill = fill
    with pytest.raises(DgpoError) as caught:
        work("rl", settings, out)
    return world().fail(caught.value.message, caught.value.hint)
