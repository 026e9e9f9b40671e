"""Work that is interrupted at any point ends as if it had not been."""

import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from tests.offline import ROLLOUT

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ConfigError, InputError, RetrievalError
from dgpo_cli.formats.base import Turn
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model
from dgpo_cli.models.lora import has_adapter
from dgpo_cli.models.lora_options import LINEAR_MAPS, LoraOptions
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training import checkpoint, loop
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.rl import run_rl
from dgpo_cli.training.run.validation import evaluator
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.teacher.distill_data import distill_data
from dgpo_cli.training.teacher.trajectory_files import read_trajectories


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is cleaned up after it."""


class KilledAt:
    """A progress callback that dies at the given step; what is told of work inside a step does not count."""

    def __init__(self, call):
        self.left, self.done = call, None

    def __call__(self, done, total, /, note=""):
        if done == self.done:
            return
        self.done = done
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(scope="module")
def trajectories(offline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    agent = teacher_agent(offline)
    questions = read_questions(offline.questions("train"))[:24]
    distill_data(agent, questions, samples=1, keep="all", folder=folder, progress=None)
    return folder / "trajectories.jsonl"


def teacher_agent(offline):
    import torch

    loaded = load_model(str(offline.teacher), device=torch.device("cpu"))
    codec = Codec(loaded.tokenizer, loaded.protocol)
    return Agent.of(loaded.model, codec, open_index(offline.index).retriever, ROLLOUT)


def kd_settings(offline, trajectories, method="kd", **options):
    return KDSettings(
        method=method,
        objective=options,
        index=str(offline.index),
        rollout=ROLLOUT,
        student=str(offline.student),
        teacher=str(offline.teacher),
        trajectories=str(trajectories),
        epochs=3,
        batch_size=5,
        lr=1e-2,
        validation_share=0.2,
        device="cpu",
    )


def rl_settings(offline, method, **options):
    return RLSettings(
        student=str(offline.student),
        teacher=str(offline.teacher),
        index=str(offline.index),
        questions=str(offline.questions("train")),
        eval_data=str(offline.questions("validation")),
        method=method,
        objective={"kl_coef": 0.1} | options,
        steps=6,
        batch_size=8,
        mini_batches=2,
        lr=1e-2,
        warmup_steps=0,
        critic_lr=1e-2,
        eval_every=3,
        eval_limit=4,
        save_every=2,
        keep_episodes=3,
        device="cpu",
        rollout=ROLLOUT,
    )


def train(kind, settings, out, progress=None):
    command = {"kd": run_kd, "rl": run_rl}[kind]
    with RunDir.open(kind, asdict(settings), out=out) as run:
        return command(settings, run, keep=1, progress=progress)


def weights(run):
    state = checkpoint.list_states(run / "state")[-1]
    files = [*sorted(state.glob("*.safetensors")), run / "best" / "model.safetensors"]
    return {(f.parent.name == "best", f.name): load_file(f) for f in files}


def logged(run):
    """Metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_second"))} for row in rows]


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and len(first) >= 2
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        for name, tensor in tensors.items():
            assert tensor.equal(second[file][name]), (file, name)
    assert logged(one) == logged(other)
    assert rollouts(one) == rollouts(other)


def rollouts(run):
    """The episodes of rl's steps that are kept, without the seconds of their searches; scores of hits to 3 digits."""
    if not (run / "rollouts.jsonl").exists():
        return None
    text = re.sub(r'"seconds": [^,}]+', "", (run / "rollouts.jsonl").read_text())
    return re.sub(r'"score": ([0-9][^,}]*)', lambda found: f"{float(found[1]):.3f}", text)


def interrupt(kind, settings, out, calls):
    """Kill at each of the given progress calls in turn, then let the run end."""
    for call in calls:
        with pytest.raises(Killed):
            train(kind, settings, out, KilledAt(call))
    return train(kind, settings, out)


@pytest.mark.parametrize("calls", [[2], [6, 3], [5, 9, 4]])
def test_kd_ends_with_the_same_weights(offline, trajectories, tmp_path, calls):
    settings = kd_settings(offline, trajectories)
    expected = train("kd", settings, tmp_path / "whole")
    result = interrupt("kd", settings, tmp_path / "killed", calls)
    assert result.steps == expected.steps and result.best == expected.best
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("method", "calls"), [("kd", [3]), ("seqkd", [3, 4, 2]), ("gkd", [7]), ("taid", [3, 5])])
def test_kd_killed_in_the_middle_of_an_epoch_goes_on_from_there(offline, trajectories, tmp_path, method, calls):
    """An epoch has four steps; a state is saved after each third one, and after the evaluation at its end."""
    settings = replace(kd_settings(offline, trajectories, method), save_every=3)
    train("kd", replace(settings, save_every=None), tmp_path / "whole")
    first, *others = calls
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "killed", KilledAt(first + 2))
    states = [path.name for path in checkpoint.list_states(tmp_path / "killed" / "state")]
    assert states == [f"step-{max(3 * (first // 3), 4 * (first // 4)):08d}"]
    interrupt("kd", settings, tmp_path / "killed", others)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


WRITING = {
    "gkd": ("gkd", {}),
    "gkd, the teacher writes too": ("gkd", {"seq_kd": True}),
    # Every validation counts as a rise, and the buffer is full after the first sequences: all three ways are taken.
    "distillm": ("distillm", {"initial_share": 0.5, "tolerance": -100.0, "capacity": 3}),
    "taid": ("taid", {}),
    "opd": ("opd", {}),
    "minillm": ("minillm", {}),
}


@pytest.mark.parametrize(("method", "options"), WRITING.values(), ids=WRITING)
def test_a_student_that_writes_while_it_distils_ends_with_the_same_weights(
    offline, trajectories, tmp_path, method, options
):
    settings = kd_settings(offline, trajectories, method, **options)
    train("kd", settings, tmp_path / "whole")
    interrupt("kd", settings, tmp_path / "killed", [6, 4])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    shares = [row.get("student_share", 0.0) for row in logged(tmp_path / "whole") if "policy_lr" in row]
    own = {"gkd": lambda s: 0 < s < 1, "distillm": lambda s: s > 0, "taid": lambda s: s == 0}
    assert own.get(method, lambda s: s == 1)(sum(shares) / len(shares))


def test_replayed_sequences_survive_a_checkpoint(offline, trajectories, tmp_path):
    settings = kd_settings(offline, trajectories, "distillm", initial_share=0.5, capacity=3)
    train("kd", settings, tmp_path / "run")
    state = checkpoint.list_states(tmp_path / "run" / "state")[-1]
    kept = [json.loads(line) for line in (state / "replay.jsonl").read_text().splitlines()]
    assert len(kept) == 3 and all(record["score"] is not None for record in kept)


@pytest.mark.parametrize(
    ("method", "options", "calls"),
    [
        ("ppo", {}, [4]),
        ("dgpo", {}, [2, 5, 3]),
        ("grpo", {}, [3]),
        pytest.param("grpo", {"variant": "gspo"}, [3], marks=pytest.mark.slow),
        pytest.param("grpo", {"variant": "dapo"}, [4], marks=pytest.mark.slow),
    ],
    ids=["ppo", "dgpo", "grpo", "gspo", "dapo"],
)
def test_rl_ends_with_the_same_weights(offline, tmp_path, method, options, calls):
    settings = rl_settings(offline, method, **options)
    train("rl", settings, tmp_path / "whole")
    interrupt("rl", settings, tmp_path / "killed", calls)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    kept = [json.loads(line) for line in rollouts(tmp_path / "killed").splitlines()[1:]]
    assert [row["step"] for row in kept] == [step for step in range(1, 7) for _ in range(3)]
    assert ("kl" in set().union(*(row["tokens"] for row in kept))) == (method == "dgpo")


@pytest.mark.slow
def test_rl_with_everything_that_saves_memory_ends_with_the_same_weights(offline, tmp_path):
    """8-bit moments, a shared critic, checkpointed layers, and batches as `--fit` found them before the first kill."""
    settings = rl_settings(offline, "dgpo")
    settings = replace(settings, optimizer="adamw-8bit", critic="shared", gradient_checkpointing=True, fit=True)
    train("rl", settings, tmp_path / "whole")
    interrupt("rl", settings, tmp_path / "killed", [4])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    fits = [json.loads((tmp_path / name / "fit.json").read_text()) for name in ("whole", "killed")]
    assert all(fit["wave"] == 8 and fit["micro_batch_tokens"] == 8 * ROLLOUT.max_tokens for fit in fits)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert len(record["deviations"]) == 2 and "not a model of its own" in record["deviations"][0]


def test_kd_fits_to_the_longest_trajectory(offline, trajectories, tmp_path):
    settings = replace(kd_settings(offline, trajectories), fit=True, validation_share=0.0, index=None)
    train("kd", settings, tmp_path / "run")
    longest = max(len(t.token_ids) for t in read_trajectories(trajectories).trajectories)
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    assert fit["wave"] is None and fit["micro_batch_tokens"] == 5 * longest
    assert json.loads((tmp_path / "run" / "run.json").read_text())["deviations"] == []


def test_a_method_that_searches_without_an_index_is_refused(offline, trajectories, tmp_path):
    with pytest.raises(ConfigError, match="no index"):
        train("kd", replace(kd_settings(offline, trajectories, "opd"), index=None), tmp_path / "run")


@pytest.mark.parametrize("place", ["before the rename", "in the middle of a step"])
def test_a_kill_inside_saving_or_a_step_loses_nothing(offline, tmp_path, monkeypatch, place):
    settings = rl_settings(offline, "dgpo")
    train("rl", settings, tmp_path / "whole")
    calls = 0

    def die(original, at):
        def replaced(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return original(*args, **kwargs)

        return replaced

    with monkeypatch.context() as patch:
        if place == "before the rename":
            patch.setattr(checkpoint, "to_json", die(checkpoint.to_json, 2))
        else:
            patch.setattr(loop, "optimizer_step", die(loop.optimizer_step, 8))
        with pytest.raises(Killed):
            train("rl", settings, tmp_path / "killed")
    train("rl", settings, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "state").glob(".writing*"))


@pytest.mark.parametrize("rows", [0, 3, 11])
def test_distill_data_makes_the_same_episodes_once(offline, trajectories, tmp_path, rows):
    """A kill leaves some rows of a wave and half a line; the next call adds what is missing."""
    questions = read_questions(offline.questions("train"))[:24]
    whole = (trajectories.parent / "episodes.jsonl").read_text().splitlines(keepends=True)
    torn = [*whole[: 1 + rows], whole[1 + rows][:40]]
    (tmp_path / "episodes.jsonl").write_text("".join(torn))
    distill_data(teacher_agent(offline), questions, samples=1, keep="all", folder=tmp_path, progress=None)

    assert_same_trajectories(tmp_path / "trajectories.jsonl", trajectories, 24)


def assert_same_trajectories(one, other, count):
    """Log-probabilities up to the last bits: they are sums over another batch."""
    sides = []
    for path in (one, other):
        made = [t.to_json() for t in read_trajectories(path).trajectories]
        for record in made:
            for call in record["searches"]:
                call["seconds"] = 0.0
        told = [[*record.pop("logprobs"), record.pop("answer_logprob") or 0.0] for record in made]
        sides.append((made, [p for values in told for p in values]))
    (made, logprobs), (expected, expected_logprobs) = sides
    assert made == expected and len(made) == count
    assert logprobs == pytest.approx(expected_logprobs, abs=1e-5)


def test_a_validation_that_is_killed_goes_on_where_it_stopped(offline, tmp_path):
    """Of the same weights what is recorded is taken; of other weights all is asked again."""
    import torch

    agent = teacher_agent(offline).with_settings(wave=2)
    questions = read_questions(offline.questions("validation"))[:8]
    model = load_model(str(offline.teacher), device=torch.device("cpu")).model
    whole = evaluator(agent, questions, folder=tmp_path / "whole", model=model)()
    asked, folder = [], tmp_path / "killed"

    def die(done, total, /, note=""):
        asked.append(done)
        if done >= 5:
            raise Killed

    with pytest.raises(Killed):
        evaluator(agent, questions, folder=folder, model=model, progress=die)()
    (unfinished,) = folder.iterdir()
    kept = len(unfinished.read_text().splitlines()) - 1
    assert kept >= 3
    del asked[:]
    assert (
        evaluator(agent, questions, folder=folder, model=model, progress=lambda d, t, n="": asked.append(d))() == whole
    )
    assert min(asked) >= kept and max(asked) == 8, (asked, kept)
    assert [path.name for path in folder.iterdir()] == ["validation.jsonl"]

    def rows(name):
        return re.sub(r'"seconds": [^,}]+', "", (tmp_path / name / "validation.jsonl").read_text())

    assert rows("killed") == rows("whole")
    with pytest.raises(Killed):
        evaluator(agent, questions, folder=folder, model=model, progress=die)()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    del asked[:]
    evaluator(agent, questions, folder=folder, model=model, progress=lambda d, t, n="": asked.append(d))()
    assert min(asked) <= 2 < kept


def test_best_weights_that_are_gone_are_made_from_the_state(offline, trajectories, tmp_path, caplog):
    settings = kd_settings(offline, trajectories)
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(7))
    state = checkpoint.list_states(tmp_path / "run" / "state")[-1]
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(2))
    assert f"{tmp_path / 'run'}/best is gone: the weights of step" in caplog.text
    made, saved = load_file(tmp_path / "run" / "best" / "model.safetensors"), load_file(state / "student.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (made[name] == saved[name]).all()
    assert train("kd", settings, tmp_path / "run").best is not None
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_what_is_gone_and_cannot_be_made_again_is_told(offline, trajectories, tmp_path, caplog):
    settings, folder = kd_settings(offline, trajectories), tmp_path / "run"
    with pytest.raises(Killed):
        train("kd", settings, folder, KilledAt(7))
    config = (folder / "config.toml").read_text()
    for name in ("metrics.jsonl", "config.toml"):
        (folder / name).unlink()
    with pytest.raises(Killed):
        train("kd", settings, folder, KilledAt(2))
    assert f"{folder}/metrics.jsonl is gone: what was logged before step" in caplog.text
    assert f"{folder}/config.toml was gone: it is written again" in caplog.text
    assert (folder / "config.toml").read_text() == config


def test_a_damaged_state_is_refused_and_kept(offline, trajectories, tmp_path):
    settings = kd_settings(offline, trajectories)
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(7))
    state = checkpoint.list_states(tmp_path / "run" / "state")[-1]
    damaged = (state / "student.safetensors").read_bytes()[:100]
    (state / "student.safetensors").write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be used"):
        train("kd", settings, tmp_path / "run")
    assert (state / "student.safetensors").read_bytes() == damaged


def test_one_flipped_bit_in_a_state_is_refused_by_name(offline, trajectories, tmp_path):
    settings = kd_settings(offline, trajectories)
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(7))
    state = checkpoint.list_states(tmp_path / "run" / "state")[-1]
    files = sorted(state.iterdir())
    assert {f.name for f in files} >= {"state.json", "student.safetensors", "policy_optimizer.safetensors"}
    for file in files:
        whole = file.read_bytes()
        at = whole.index(b'"step": ') + 8 if file.name == "state.json" else len(whole) // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match=rf"cannot be used: {file.name} was changed") as refused:
            train("kd", settings, tmp_path / "run")
        assert refused.value.hint == "start again with --fresh", "there is no older one"
        file.write_bytes(whole)
    train("kd", settings, tmp_path / "run")


def test_leftovers_of_kills_are_gone_with_the_next_start(offline, trajectories, tmp_path):
    """Also a whole state beside --keep 1, and a state of which a removal left a part."""
    settings = kd_settings(offline, trajectories)
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(7))
    states = tmp_path / "run" / "state"
    newest = checkpoint.list_states(states)[-1]
    shutil.copytree(newest, states / "step-00000001")
    (states / "step-00000001" / "student.safetensors").unlink()
    shutil.copytree(newest, states / ".step-00000001.removed")
    shutil.copytree(newest, states / ".step-00000099.writing")
    (states / "step-00000002").mkdir()
    (tmp_path / "run" / ".best.writing").mkdir()
    (tmp_path / "run" / ".metrics.jsonl.123.writing").write_text("{")
    with pytest.raises(Killed):
        train("kd", settings, tmp_path / "run", KilledAt(1))
    assert [p.name for p in states.iterdir()] == [newest.name]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.fixture
def broken_index(monkeypatch):
    """An index that fails at every search, until it is undone."""
    from dgpo_cli.formats.tags import Tags
    from dgpo_cli.retrieval.lexical.bm25 import BM25Retriever

    def fail(self, queries, k):
        raise RetrievalError("the index is on fire")

    monkeypatch.setattr(BM25Retriever, "search", fail)
    # Untrained models do not search by themselves: every turn is read as a search.
    monkeypatch.setattr(Tags, "parse", lambda _, text, *, ended: Turn(text, "search", "x"))
    return monkeypatch


def test_the_loop_stops_a_run_whose_retriever_is_broken(offline, tmp_path, broken_index):
    with pytest.raises(RetrievalError, match="8 of 8 questions failed to search: the index is on fire"):
        train("rl", rl_settings(offline, "ppo"), tmp_path / "run")


def test_a_validation_that_cannot_search_is_no_score(offline, broken_index):
    questions = read_questions(offline.questions("validation"))[:4]
    with pytest.raises(RetrievalError, match="4 of 4 questions failed to search: the index is on fire"):
        evaluator(teacher_agent(offline), questions)()


def test_distill_data_asks_again_what_could_not_be_searched(offline, tmp_path, broken_index):
    """It stops where too many failed, keeps none of them, and the repaired index gets all of the questions."""
    questions = read_questions(offline.questions("train"))[:40]

    def distill():
        agent = teacher_agent(offline)
        return distill_data(agent, questions, samples=1, keep="all", folder=tmp_path, progress=None)

    with pytest.raises(RetrievalError, match="5 of 40 questions failed to search: the index is on fire"):
        distill()
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 1
    broken_index.undo()
    summary = distill()
    assert (summary.episodes, summary.failed_searches) == (40, 0)
    assert len({t.key for t in read_trajectories(tmp_path).trajectories}) == 40


@pytest.mark.parametrize("kind", ["kd", "rl"])
def test_an_adapter_ends_the_same_and_what_is_written_is_a_whole_model(offline, trajectories, tmp_path, kind):
    """With a critic of its own, whose adapter is another one."""
    made = kd_settings(offline, trajectories) if kind == "kd" else rl_settings(offline, "dgpo")
    settings = replace(made, lora=LoraOptions(4), precision="float32")
    train(kind, settings, tmp_path / "whole")
    interrupt(kind, settings, tmp_path / "killed", [4])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    found = weights(tmp_path / "whole")
    assert all(".lora_" in name for name in found[False, "student.safetensors"])
    best, start = found[True, "model.safetensors"], load_file(offline.student / "model.safetensors")
    assert best.keys() == start.keys()
    changed = {name.split(".")[-2] for name in best if not best[name].equal(start[name])}
    assert changed == set(LINEAR_MAPS)
    assert not has_adapter(load_model(str(tmp_path / "whole" / "best"), device=torch.device("cpu")).model)
    assert "an adapter of rank 4" in (tmp_path / "whole" / "run.json").read_text()


def test_frozen_embeddings_end_the_same(offline, tmp_path):
    settings = replace(rl_settings(offline, "dgpo"), freeze_embeddings=True)
    train("rl", settings, tmp_path / "whole")
    interrupt("rl", settings, tmp_path / "killed", [4])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    best = load_file(tmp_path / "whole" / "best" / "model.safetensors")
    start = load_file(offline.student / "model.safetensors")
    same = {name for name in best if best[name].equal(start[name])}
    assert same == {name for name in best if "embed_tokens" in name or "lm_head" in name} != set()
