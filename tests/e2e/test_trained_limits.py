"""What a model was trained with is what the next command uses, and each default says where it came from."""

import io
import json
from dataclasses import replace

import pytest
from tests.offline import write_one_trajectory

from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.models.sources import read_protocol
from dgpo_cli.training.teacher.trajectory_files import read_trajectories

SMALL = ("-orollout.max_new_tokens=16", "-orollout.max_prompt_tokens=64", "-orollout.wave=8")


@pytest.fixture
def commands(offline):
    rl = ("rl", "--student", str(offline.student), "--teacher", str(offline.teacher), "--batch-size", "2")
    data = ("--index", str(offline.index), "--data", str(offline.questions("train")))
    return {
        "rl": (*rl, *data, *SMALL),
        "distill-data": ("distill-data", "--teacher", str(offline.teacher), *data, *SMALL),
    }


@pytest.mark.parametrize("command", ["rl", "distill-data"])
def test_the_record_beats_the_paper_and_what_is_given_beats_the_record(dgpo, commands, command):
    ended = dgpo(*commands[command], "--dry-run", "--json")
    rollout = json.loads(ended.out)["rollout"]
    assert (rollout["top_k"], rollout["max_turns"]) == (TINYWORLD.top_k, TINYWORLD.max_turns) != (3, 4)
    assert "top_k: 2, max_turns: 2 (as " in ended.err and "was trained)" in ended.err
    ended = dgpo(*commands[command], "-o", "rollout.top_k=5", "--dry-run", "--json")
    rollout = json.loads(ended.out)["rollout"]
    assert (rollout["top_k"], rollout["max_turns"]) == (5, 2)
    assert "top_k:" not in ended.err and "max_turns: 2" in ended.err
    assert "warning: top_k is 5, and 2 would be as " in ended.err
    ended = dgpo(*commands[command], "-o", "rollout.top_k=2", "--dry-run", "--json")
    assert "warning" not in ended.err, "what is given is what it was trained with"


def test_a_raw_student_takes_its_teachers_record_and_two_raw_models_the_papers(dgpo, offline, folder, commands):
    import torch

    for name in ("student", "teacher"):
        loaded = load_model(str(getattr(offline, name)), device=torch.device("cpu"))
        save_model(folder / name, loaded.model, loaded.tokenizer, TINYWORLD)
        (folder / name / "protocol.json").unlink()
    raw = [part.replace("prompt_tokens=64", "prompt_tokens=300") for part in commands["rl"]]  # its text is longer
    ended = dgpo(*commands["rl"], "--student", "./student", "--dry-run", "--json")
    assert json.loads(ended.out)["rollout"]["top_k"] == 2 and f"as {offline.teacher} was trained" in ended.err
    ended = dgpo(*raw, "--student", "./student", "--method", "ppo", "--dry-run", "--json")
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["rollout"]["top_k"] == 3 and "top_k: 3, max_turns: 4 (the paper's)" in ended.err
    ended = dgpo(*raw, "--student", "./student", "--teacher", "./teacher", "--dry-run", "--json")
    assert json.loads(ended.out)["rollout"]["max_turns"] == 4


def test_search_results_leave_room_in_a_small_context(dgpo, commands, offline):
    """As `dgpo eval` does, so that a model is trained on what it will be measured on."""
    from dgpo_cli.models.sources import context_of

    context = context_of(str(offline.student))
    ended = dgpo(*commands["rl"], "--dry-run", "--json")
    assert json.loads(ended.out)["rollout"]["max_observation_tokens"] == context // 4 < 500
    assert f"max_observation_tokens: {context // 4} (a quarter of" in ended.err
    ended = dgpo(*commands["rl"], "-orollout.max_observation_tokens=300", "--dry-run", "--json")
    assert json.loads(ended.out)["rollout"]["max_observation_tokens"] == 300


def test_what_was_used_is_recorded_for_the_next_command(dgpo, commands, offline, folder):
    """From trajectories over kd and rl to eval: nobody has to repeat -o rollout.top_k."""
    options = ("--keep", "all", "--limit", "8", "-orollout.top_k=1", "-orollout.max_turns=3")
    assert dgpo(*commands["distill-data"], *options).status == 0
    assert read_trajectories(folder / "runs/distill-data-0001").protocol["top_k"] == 1
    evaluation = ("--index", str(offline.index), "--eval-data", str(offline.questions("validation")))
    ended = dgpo("kd", "--student", str(offline.student), "--steps", "1", *SMALL, *evaluation, "-oeval_limit=2")
    assert ended.status == 0 and "top_k: 1, max_turns: 3, " in ended.err and "(as in the trajectories)" in ended.err
    limits = read_protocol(folder / "runs/kd-0001/best/protocol.json")
    assert (limits.top_k, limits.max_turns) == (1, 3)
    # The teacher was trained with 2 passages, the student with 1: the text is the same, so they fit together.
    trained = (*commands["rl"], "--student", "kd-0001", "--steps", "1", "-oeval_limit=2", "-orollout.max_turns=1")
    ended = dgpo(*trained)
    assert ended.status == 0, ended.err
    assert "top_k: 1, " in ended.err and "warning: max_turns is 1, and 3 would be as " in ended.err
    limits = read_protocol(folder / "runs/rl-0001/best/protocol.json")
    assert limits.same_text(TINYWORLD)
    assert (limits.top_k, limits.max_turns, limits.max_new_tokens, limits.max_prompt_tokens) == (1, 1, 16, 64)
    (folder / "tinyworld.jsonl").write_bytes(offline.questions("test").read_bytes())
    ended = dgpo("eval", "--bench", "tinyworld", "--bench-dir", ".", "--index", str(offline.index), "--dry-run")
    assert "top_k: 1, max_turns: 1, max_new_tokens: 16" in ended.err


def test_every_limit_of_training_reaches_the_next_command_and_can_be_overridden(dgpo, offline, folder, monkeypatch):
    """Trained with observations of 130 tokens and 2 passages: eval and chat read as much, or warn."""
    import torch

    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    trained = TINYWORLD.with_limits({"max_observation_tokens": 130, "max_tokens": 190, "max_new_tokens": 12, "wave": 9})
    save_model(folder / "model", loaded.model, loaded.tokenizer, trained)
    (folder / "tinyworld.jsonl").write_bytes(offline.questions("test").read_bytes())
    ask = ("eval", "--model", "./model", "--bench", "tinyworld", "--bench-dir", ".", "--index", str(offline.index))
    ended = dgpo(*ask, "--limit", "2", "--json")
    assert ended.status == 0, ended.err
    rollout = json.loads(ended.out)["rollout"]
    assert {name: rollout[name] for name in trained.limits} == trained.limits and "warning" not in ended.err
    said = "top_k: 2, max_turns: 2, max_new_tokens: 12, max_observation_tokens: 130, max_tokens: 190 (as "
    assert said in ended.err.replace("\n", " ")
    ended = dgpo(*ask, "-k", "3", "-orollout.max_observation_tokens=50", "--dry-run", "--json")
    assert (json.loads(ended.out)["max_observation_tokens"], json.loads(ended.out)["top_k"]) == (50, 3)
    assert "max_observation_tokens is 50, and 130 would be as " in ended.err and "top_k is 3, and 2 would" in ended.err
    ended = dgpo(*ask, "-orollout.wave=3", "--dry-run")
    assert ended.status != 0 and "wave" in ended.err
    seen = []
    from dgpo_cli.agent.agent import Agent

    original = Agent.run

    monkeypatch.setattr(Agent, "run", lambda self, pairs, **_: seen.append(self.settings) or original(self, pairs))
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\n"))
    ended = dgpo("chat", "--model", "./model", "--index", str(offline.index), "-k", "3")
    assert (seen[0].max_observation_tokens, seen[0].max_tokens, seen[0].top_k) == (130, 190, 3)
    assert "top_k is 3, and 2 would be as " in ended.err


def test_python_asks_and_trains_within_the_same_limits_as_the_commands(dgpo, offline, folder, monkeypatch, caplog):
    import torch

    from dgpo_cli import library
    from dgpo_cli.agent.agent import Agent

    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    ask = ("eval", "--model", str(offline.student), "--index", str(offline.index), "--bench", "tinyworld")
    told = json.loads(dgpo(*ask, "--bench-dir", str(offline.folder / "world"), "--dry-run", "--json").out)
    caplog.clear()
    settings = Agent.open(loaded, None).settings
    assert not caplog.records
    Agent.open(replace(loaded, trained_with_protocol=False), None)
    assert "was never trained to search" in caplog.text
    assert settings.max_observation_tokens == told["max_observation_tokens"] < 500, "a quarter of a small context"
    assert (settings.top_k, settings.max_turns) == (told["top_k"], told["max_searches"]) == (2, 2)
    assert Agent.open(loaded, None, max_observation_tokens=77).settings.max_observation_tokens == 77

    trained = TINYWORLD.with_limits({"max_observation_tokens": 130, "max_tokens": 190, "max_new_tokens": 12})
    save_model(folder / "model", loaded.model, loaded.tokenizer, trained)
    seen = []
    monkeypatch.setattr(library, "run_rl", lambda chosen, *_, **__: seen.append(chosen.rollout) or chosen.rollout)
    made_with = {"student": str(folder / "model"), "index": str(offline.index), "questions": "q.jsonl"}
    library.train("ppo", out=folder / "out", rollout={"max_tokens": 150}, **made_with)
    (rollout,) = seen
    assert (rollout.top_k, rollout.max_observation_tokens, rollout.max_new_tokens, rollout.max_tokens) == (
        2,
        130,
        12,
        150,
    )


def test_a_config_file_names_the_models_too(dgpo, commands, folder, offline):
    """`dgpo rl --config RUN/config.toml` repeats a run, also in a folder that remembers or defaults to other models."""
    dry = dgpo(*commands["rl"], "-orollout.top_k=4", "--dry-run")
    (folder / "config.toml").write_text(dry.out)
    again = json.loads(dgpo("rl", "--config", "config.toml", "--dry-run", "--json").out)
    assert (again["student"], again["teacher"]) == (str(offline.student), str(offline.teacher))
    assert again["questions"] == str(offline.questions("train")) and again["index"] == str(offline.index)
    assert again["rollout"]["top_k"] == 4
    other = json.loads(
        dgpo("rl", "--config", "config.toml", "--student", str(offline.teacher), "--dry-run", "--json").out
    )
    assert other["student"] == str(offline.teacher)


def test_a_model_that_was_never_trained_to_search_is_told_of(dgpo, offline, folder, commands):
    """In one line, with the commands that make it search, by eval and rl; chat has it too."""
    import torch

    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    save_model(folder / "raw", loaded.model, loaded.tokenizer, TINYWORLD)
    (folder / "raw" / "protocol.json").unlink()
    (folder / "tinyworld.jsonl").write_bytes(offline.questions("test").read_bytes())
    line = "raw was never trained to search: expect turns without an action; `dgpo distill-data --teacher gold`"
    room = ("-o", "rollout.max_prompt_tokens=300", "-o", "rollout.max_tokens=380")
    ask = ("--bench", "tinyworld", "--bench-dir", ".", "--index", str(offline.index), "--limit", "1")
    ended = dgpo("eval", "--model", "./raw", *ask, *room)
    assert ended.status == 0 and line in " ".join(ended.err.split())
    trained = dgpo("eval", "--model", str(offline.student), *ask)
    assert trained.status == 0 and "never trained" not in trained.err
    steps = ("--steps", "1", "-oeval_limit=2")
    raw = [part.replace("prompt_tokens=64", "prompt_tokens=300") for part in commands["rl"]]  # its text is longer
    ended = dgpo(*raw, "--student", "./raw", "--method", "ppo", *steps)
    assert " ".join(ended.err.split()).count(line) == 1
    ended = dgpo(*commands["rl"], "--teacher", "./raw", *steps)
    assert " ".join(ended.err.split()).count(line) == 1 and "pulls the student to the same" in ended.err
    data = str(write_one_trajectory(offline, folder / "one.jsonl"))
    both = ("--student", "./raw", "--teacher", "./raw", "--data", data, "--batch-size", "1", "--steps", "1")
    writes = ("--index", str(offline.index), *room)
    for method, more, lines in (("seqkd", (), 0), ("kd", (), 1), ("gkd", writes, 2)):
        ended = dgpo("kd", *both, "--method", method, *more)
        assert ended.status == 0 and " ".join(ended.err.split()).count(line) == lines, (method, ended.err)
    raw = [part.replace("prompt_tokens=64", "prompt_tokens=300") for part in commands["distill-data"]]
    ended = dgpo(*raw, "--teacher", "./raw", "--limit", "1", "--out", "asked")
    assert ended.status == 0 and " ".join(ended.err.split()).count(line) == 1, ended.err
    ended = dgpo(*commands["distill-data"], "--limit", "1", "--out", "trained")
    assert ended.status == 0 and "never trained" not in ended.err
