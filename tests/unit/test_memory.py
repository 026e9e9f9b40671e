"""The account of memory: by hand where it is simple, by its own rules where a start is refused or fitted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.offline import ROLLOUT
from tests.tiny import bpe_tokenizer

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.commands.common.given import given_names
from dgpo_cli.core.config import apply_options, parse_options
from dgpo_cli.core.machine import GIB
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.errors import ConfigError, ModelError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.models import half
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.lora_options import LoraOptions
from dgpo_cli.models.shapes import SHAPES, shape_from
from dgpo_cli.planning import checks
from dgpo_cli.planning.effects import require_effect
from dgpo_cli.planning.writing import Writing, fitted_wave, prompt_tokens
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.job import Job
from dgpo_cli.training.sizes.jobs import Account, Room, training_job, with_sizes

SMALL = SHAPES["smollm2-135m"]
PAIR = {"student": "smollm2-135m", "teacher": "qwen-0.5b", "trajectories": ""}
P, V, H = 134_515_008, 49_152, 576
JOB = Job(
    student=SMALL, reader=None, reader_8bit=False, distribution=False, rl=False, reference=False, tokens=1024,
    trained=1024, chunk=256, slots=8, capacity=2048, checkpointing=False, accelerated=False,
)  # fmt: skip


@pytest.fixture(params=[False, True], ids=["float32", "bf16"])
def bf16(request, monkeypatch):
    monkeypatch.setattr(half, "processor_has_bf16", lambda: request.param)
    return request.param


def test_bf16_on_a_cpu_by_hand():
    """Masters stay in float32; a copy to write with, the cache and inputs of linear maps take half."""
    plain, halved = memory.by_part(JOB), memory.by_part(replace(JOB, half=True))
    assert "copy to write with" not in plain and halved["copy to write with"] == 2 * P
    assert plain["student weights"] == halved["student weights"] == 4 * P
    assert plain["optimizer"] == halved["optimizer"] == 8 * P
    assert memory.kv_cache(JOB) == 2 * memory.kv_cache(replace(JOB, half=True)) == 2 * 30 * 8 * 2048 * 192 * 4
    linear = 30 * (2 * H * H + 2 * H * 192 + 3 * H * 1536)
    per_token = 30 * (20 * H + 8 * H + 8 * 1536) + 16 * H
    assert memory.activations(replace(JOB, half=True)) == 1024 * per_token + 2 * linear
    chunk = memory.vocabulary_chunk(replace(JOB, half=True))
    assert chunk == 4 * 256 * V * 1.5 + 2 * 2 * V * H  # logits, their gradient in bf16, the output layer and its own


def test_a_teacher_is_in_bf16_where_it_is_wide_and_not_in_8_bit():
    job = replace(JOB, reader=SMALL, reader_half=True)
    assert memory.reader_bytes(job) == 2 * P and memory.reader_bytes(replace(job, reader_half=False)) == 4 * P
    linear = 30 * SMALL.layer_linear
    assert memory.reader_bytes(replace(job, reader_8bit=True)) == linear + 4 * (P - linear)


def test_the_optimizer_has_no_temporary_on_a_gpu():
    assert memory.adam_temporary(replace(JOB, accelerated=True)) == 0
    assert memory.adam_temporary(JOB) == 4 * V * H


def test_the_cache_of_a_cpu_is_gone_while_a_step_trains():
    """It is given back where an episode ends: only the larger of writing and training counts."""
    few, many = replace(JOB, slots=1), replace(JOB, slots=64, capacity=8192)
    assert "KV cache" not in memory.by_part(few) and "activations" in memory.by_part(few)
    parts = memory.by_part(many)
    assert parts["KV cache"] == 2 * 30 * 64 * 8192 * 192 * 4 and "activations" not in parts and "gradients" not in parts
    assert "KV cache" in memory.by_part(replace(few, accelerated=True))


def test_the_precision_is_that_of_the_run(bf16):
    def job(**changed):
        made = KDSettings(**PAIR, **changed)
        return training_job(made, student="smollm2-135m", device="cpu")

    assert job().half is job().reader_half is bf16
    assert not job(precision="float32").half and not job(precision="float32").reader_half
    on_gpu = training_job(KDSettings(**PAIR), student="smollm2-135m", device="cuda")
    assert not on_gpu.half and on_gpu.compute == 2


def test_a_method_without_a_critic_takes_no_memory_for_one():
    """By hand: weights and two moments of the student, and no value that is not the student's."""
    made = RLSettings(student="smollm2-135m", index="", questions="", method="grpo", batch_size=4)
    job = training_job(made, student="smollm2-135m", device="cpu")
    parts = memory.by_part(job)
    assert "critic weights" not in parts
    assert parts["student weights"] == 4 * P and parts["optimizer"] == 8 * P
    assert memory.trained_values(job) == P
    with_one = training_job(replace(made, method="ppo"), student="smollm2-135m", device="cpu")
    assert memory.activations(with_one) == 2 * memory.activations(replace(with_one, critic=False))


def test_a_teacher_that_writes_has_a_cache_of_its_own():
    """Blended token by token both are full at once; written one after the other a CPU has given the first back."""
    student, teacher = 2 * 30 * 192 * 4, 2 * 24 * 128 * 4  # bytes of a token in float32

    def job(method, device="cpu", **objective):
        made = KDSettings(**PAIR, index="x", method=method, objective=objective, precision="float32")
        return training_job(made, student="smollm2-135m", device=device)

    tokens = 64 * 4096
    assert memory.kv_cache(job("opd")) == student * tokens
    assert memory.kv_cache(job("minillm", teacher_share=0.2)) == (student + teacher) * tokens
    assert memory.kv_cache(job("minillm", teacher_share=0.0)) == student * tokens
    assert memory.kv_cache(job("gkd", seq_kd=True)) == student * tokens > teacher * tokens
    assert memory.kv_cache(job("gkd", "cuda", seq_kd=True)) == (student + teacher) / 2 * tokens


def test_no_more_episodes_are_open_than_there_are():
    few = RLSettings(student="smollm2-135m", index="", questions="", method="ppo", batch_size=4, eval_limit=6)
    assert training_job(few, student="smollm2-135m", device="cpu").slots == 6
    grouped = replace(few, method="grpo")
    assert training_job(grouped, student="smollm2-135m", device="cpu").slots == 4 * 5


# --- a model that is only asked -------------------------------------------------------------------------------------


def asked(**changed):
    return Writing.of("smollm2-135m", RolloutSettings(), device="cpu", **changed)


def test_open_episodes_count_at_their_usual_length_and_the_most_is_told_apart(bf16):
    writing, each = asked(), 2 * 30 * 192 * (2 if bf16 else 4)
    assert writing.usual == 300 + 3 * 500 + 4 * 100
    assert writing.parts(20)["KV cache"] == 20 * 2200 * each
    assert writing.parts(20, longest=True)["KV cache"] == 20 * 4096 * each
    assert writing.parts(20)["weights"] == (2 if bf16 else 4) * P
    assert "20 episodes of 2200 tokens" in writing.told(20) and "if every one has 4096 tokens" in writing.told(20)
    gpu = Writing.of("smollm2-135m", RolloutSettings(), device="cuda")
    assert gpu.parts(20) == gpu.parts(20, longest=True)


def test_an_observation_is_no_longer_than_the_passages_that_are_asked_for():
    assert Writing.of("smollm2-135m", RolloutSettings(top_k=1), device="cpu").usual == 300 + 3 * 170 + 4 * 100
    short = RolloutSettings(top_k=1, max_observation_tokens=90, max_turns=2)
    assert Writing.of("smollm2-135m", short, device="cpu").usual == 300 + 2 * 90 + 3 * 100


def test_files_count_where_they_are_mapped_and_never_against_the_room():
    writing = asked(file=10 * GIB)
    assert writing.expected(1) > 10 * GIB > sum(writing.parts(1).values())
    assert fitted_wave(writing, 8, Room("cpu", 4 * GIB), given=False, setting="", say=None) == 8


def test_prompts_count_as_they_are():
    class Asked:
        text = "x" * 3000

    assert prompt_tokens([Asked()], frame=100) == 1100 and prompt_tokens([], frame=100) == 300


def test_fewer_at_once_where_as_many_do_not_fit():
    writing, said = asked(), []
    room = Room("cpu", int(sum(writing.parts(16).values())) + 1)
    assert fitted_wave(writing, 64, room, given=False, setting="--batch-size ", say=said.append) == 16
    assert said == [f"fitted to {room.bytes / GIB:.1f} GiB of free cpu memory: 16 episodes at once"]
    with pytest.raises(ConfigError, match="64 episodes at once are expected to need") as caught:
        fitted_wave(writing, 64, room, given=True, setting="--batch-size ", say=None)
    assert caught.value.hint == "this fits: --batch-size 16"
    assert fitted_wave(writing, 16, room, given=True, setting="--batch-size ", say=said.append) == 16
    assert "GiB if every one has 4096 tokens" in said[1]


def test_one_that_may_not_fit_at_its_longest_is_refused():
    room = Room("cpu", int(sum(asked().parts(1, longest=True).values())) - 1)
    with pytest.raises(ConfigError, match="smollm2-135m and one episode of 4096 tokens need") as caught:
        fitted_wave(asked(), 1, room, given=False, setting="", say=None)
    assert caught.value.hint == "this fits: -o rollout.max_tokens=2048"
    with pytest.raises(ConfigError) as caught:
        fitted_wave(asked(), 1, Room("cpu", GIB // 2), given=False, setting="", say=None)
    assert "smaller model" in caught.value.hint


def test_each_command_is_told_the_name_that_it_has_for_the_length(offline, monkeypatch):
    """`make-questions` has no episodes: its own max_tokens is what it takes."""
    room = Room("cpu", int(sum(asked(capacity=1024).parts(1, longest=True).values())) + 1)
    monkeypatch.setattr(Room, "on", classmethod(lambda cls, *_: room))
    monkeypatch.setattr(checks, "_codec", lambda *_: Codec(bpe_tokenizer(), DEFAULT))
    monkeypatch.setattr(checks, "_writing", lambda *_, **__: asked(capacity=2048))
    with pytest.raises(ConfigError) as caught:
        checks.check_asked("x", 8, 2048, device="cpu", precision="auto", eight_bit=False, say=None)
    assert caught.value.hint == "this fits: -o max_tokens=1024"
    name, _, value = caught.value.hint.partition("-o ")[2].partition("=")
    assert apply_options(MakeQuestionsSettings, {"index": "i", "no_model": True, name: value}).max_tokens == 1024


# --- what a refusal names does fit ----------------------------------------------------------------------------------

OPTIONS = {
    "micro_batch_tokens": [512, 16_384],
    "rollout.wave": [4, 64, 256],
    "chunk_tokens": [64, 256, 1024],
    "gradient_checkpointing": ["false"],
    "rollout.max_tokens": [1500, 4096],
    "optimizer": ["adamw"],
}


def account(kind, room, named, rolls=True):
    """`rolls`: the run writes its sequences itself; else they are of 4,096 tokens, whatever an episode may have."""

    def longest(tried):
        return tried.rollout.max_tokens if rolls else 4096

    def parts(tried):
        return memory.in_process(
            training_job(tried, student="smollm2-135m", device=room.device, longest=longest(tried))
        )

    return Account(parts, longest, room, named)


@given(
    st.sampled_from(["seqkd", "kd", "opd", "ppo", "dgpo", "grpo"]),
    st.sampled_from(["smollm2-135m", "qwen-0.5b", "qwen-3b"]),
    st.sampled_from(["cpu", "cuda"]),
    st.integers(1, 120),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in OPTIONS.items()}),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_refusal_names_does_fit(method, teacher, device, gib, options):
    """Whatever is set and free: either sizes are found that fit, or the named settings do, taken as a user would."""
    rl = method in ("ppo", "dgpo", "grpo")
    kind = RLSettings if rl else KDSettings
    needed = {"student": "smollm2-135m", "teacher": teacher, "method": method}
    rolls = rl or method == "opd"
    needed |= {"index": "x"} if rolls else {}
    needed |= {"questions": ""} if rl else {"trajectories": ""}
    room = Room(device, gib * GIB // 4)

    def start(given_options):
        words = [f"{name}={value}" for name, value in given_options.items()]
        made = apply_options(kind, needed | parse_options(words))
        demand = account(kind, room, given_names(None, words, "rl" if rl else "kd", kind), rolls)
        return made, demand, demand.fitted(made)

    try:
        made, demand, sizes = start(options)
    except ConfigError as error:
        if "would fit: " not in error.hint:
            return
        hint = error.hint.partition("would fit: ")[2].replace("--teacher-8bit", "-o teacher_8bit=true")
        again = dict(word.split("=") for word in hint.split() if word != "-o")
        made, demand, sizes = start(options | again)
        require_effect(made, again)
    assert demand.fits(with_sizes(made, sizes))
    assert not set(sizes) & set(demand.given)


def test_a_hint_names_no_more_than_it_takes():
    made = RLSettings(student="smollm2-135m", index="x", questions="", method="ppo")
    least = account(RLSettings, Room("cpu", 0), ())._reduced(made)[1]
    small = replace(least, critic="shared")
    room = Room("cpu", int(account(RLSettings, Room("cpu", 0), ()).need(small)) + 1)
    with pytest.raises(ConfigError) as caught:
        account(RLSettings, room, ()).fitted(made)
    assert caught.value.hint == "this would fit: -o critic=shared"


def test_an_adapter_is_the_last_that_is_advised():
    """A refusal that says that nothing fits would be wrong where an adapter does."""
    small = RolloutSettings(max_tokens=1024)
    tight = RLSettings(
        student="smollm2-135m", index="x", questions="", method="ppo", critic="shared", optimizer="adamw-8bit",
        rollout=small,
    )  # fmt: skip
    nothing = account(RLSettings, Room("cpu", 0), ())
    least = nothing._reduced(replace(tight, lora=LoraOptions(rank=16)))[1]
    room = Room("cpu", int(nothing.need(least)) + 1)
    with pytest.raises(ConfigError) as caught:
        account(RLSettings, room, ()).fitted(tight)
    assert caught.value.hint == "this would fit: -o lora.rank=16"
    with pytest.raises(ConfigError, match="this run needs") as caught:
        account(RLSettings, room, ()).fitted(replace(tight, freeze_embeddings=True))
    assert "lora" not in caught.value.hint


# --- at the start of a command --------------------------------------------------------------------------------------


def room_for(monkeypatch, size):
    monkeypatch.setattr(Room, "on", classmethod(lambda cls, *_: Room("cpu", size)))


def test_chat_is_refused_before_weights_are_loaded(dgpo, offline, folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("dgpo_cli.models.devices.load_frozen", refuse)
    room_for(monkeypatch, GIB // 8)
    ended = dgpo("chat", "--model", str(offline.student), "--index", str(offline.index))
    assert ended.status == 1 and "and one episode of" in ended.errors[0], ended.err


def test_samples_are_episodes_of_an_evaluation(offline, monkeypatch):
    seen = []
    monkeypatch.setattr(checks, "fitted_wave", lambda _, wave, *rest, **more: seen.append(wave) or wave)
    questions = read_questions(offline.questions("test"))[:3]
    rollout = RolloutSettings(wave=64, temperature=1.0)
    for samples in (1, 8, 100):
        checks.check_eval(
            str(offline.student), rollout, questions, device="cpu", loaded=True, samples=samples, say=None
        )
    assert seen == [3, 24, 64]


def test_an_evaluation_that_fits_fewer_goes_on_as_the_same_run(dgpo, offline, folder, monkeypatch):
    sizes, counted = [], checks.fitted_wave

    def looking(writing, wave, *rest, **more):
        sizes.append(int(sum(writing.parts(3).values())))
        return counted(writing, wave, *rest, **more)

    monkeypatch.setattr(checks, "fitted_wave", looking)
    ask = (
        "eval", "--model", str(offline.student), "--index", str(offline.index), "--bench", "tinyworld",
        "--bench-dir", str(offline.folder / "world"), "--limit", "6",
    )  # fmt: skip
    assert dgpo(*ask, "--dry-run").status == 0
    opened = []
    made = InProcessEngine.__init__
    monkeypatch.setattr(
        InProcessEngine, "__init__", lambda self, *a, **k: opened.append(k["slots"]) or made(self, *a, **k)
    )
    first = dgpo(*ask, "--json", "--out", "run")
    room_for(monkeypatch, sizes[0])
    again = dgpo(*ask, "--json", "--resume", "run")
    assert first.status == again.status == 0, again.err
    assert "3 episodes at once" in again.err and "6 of 6 answered" in again.err and opened == [64, 3]
    refused = dgpo(*ask, "--batch-size", "64", "--out", "other")
    assert refused.status == 1 and "this fits: --batch-size 3" in refused.err, refused.err
    assert not Path("other").exists()


def test_rl_without_questions_to_validate_with_counts_its_own_episodes(offline, monkeypatch):
    """A start with no question held out says so, and its memory is that of the episodes of a step."""
    said, jobs = [], []
    made = checks.training_job
    monkeypatch.setattr(checks, "training_job", lambda *a, **k: jobs.append(made(*a, **k)) or jobs[-1])
    settings = RLSettings(
        student=str(offline.student), index=str(offline.index), questions=str(offline.questions("test")), method="ppo",
        batch_size=4, eval_limit=0, rollout=ROLLOUT,
    )  # fmt: skip
    assert checks.check_rl(settings, say=said.append) == {}
    assert jobs[0].slots == 4 and "no question is held out" in said[0]


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_here_is_refused_before_weights_are_loaded(dgpo, offline, folder, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    ask = ("--model", str(offline.student), "--index", str(offline.index), "--device", device)
    for command in (("chat",), ("eval", "--bench", "tinyworld", "--bench-dir", str(offline.folder / "world"))):
        ended = dgpo(*command, *ask)
        assert ended.status == 1 and ended.errors == [e for e in ended.errors if f"device '{device}'" in e], ended.err
        assert len(ended.errors) == 1


GOOD = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in GOOD for value in (-64, 0, "64", True, None, 6.4, [], 10**12, 10**400)),
        ("num_key_value_heads", 3), ("num_key_value_heads", 0), ("num_key_value_heads", "2"), ("head_dim", -16),
        ("head_dim", 10**9), ("num_attention_heads", 5),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has_are_one_line(key, value):
    assert shape_from("m", GOOD).hidden == 64
    with pytest.raises(ModelError, match=f"m: config.json has .*{key}") as caught:
        shape_from("m", GOOD | {key: value})
    assert len(caught.value.message) < 200


def test_a_run_and_a_gguf_file_are_counted_as_the_models_in_them(offline, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(offline.student, run / "best")
    rollout = RolloutSettings()
    assert (
        Writing.of(str(run), rollout, device="cpu").shape
        == Writing.of(str(offline.student), rollout, device="cpu").shape
    )
    from tests.unit.test_gguf import write as write_gguf  # needs an optional package

    file = tmp_path / "m.gguf"
    write_gguf(file)
    assert sum(Writing.of(str(file), rollout, device="cpu").parts(1).values()) > memory.LIBRARIES


@pytest.mark.parametrize("contents", [None, "", "{", "[]", "{}", '{"hidden_size": -1}'])
def test_a_folder_that_describes_no_model_is_one_line_everywhere(dgpo, offline, folder, contents):
    shutil.copytree(offline.student, "broken")
    Path("broken/config.json").unlink()
    if contents is not None:
        Path("broken/config.json").write_text(contents)
    Path("own.toml").write_text('[kd]\nmethod = "seqkd"\nstudent = "./broken"\nteacher = "./broken"\n')
    index = ("--index", str(offline.index))
    for command in (
        ("plan", "own.toml", "--gpu", "cpu:16GB"),
        ("chat", "--model", "./broken", *index),
        ("eval", "--model", "./broken", *index, "--bench", "tinyworld", "--bench-dir", str(offline.folder / "world")),
        (
            "rl",
            "--student",
            "./broken",
            "--method",
            "ppo",
            *index,
            "--data",
            str(offline.questions("train")),
            "--batch-size",
            "4",
        ),
    ):
        ended = dgpo(*command)
        assert ended.status == 1 and len(ended.errors) == 1 and "broken" in ended.errors[0], (command, ended.err)
        assert "Traceback" not in ended.err
