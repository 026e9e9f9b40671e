"""The plan's figures by hand and against models that transformers builds."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny import qwen
from transformers import AutoModelForCausalLM

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core import recipes
from dgpo_cli.core.config import parse_options
from dgpo_cli.engine import sampling
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.critic import Critic
from dgpo_cli.models.lora import add_adapter
from dgpo_cli.models.lora_options import LINEAR_MAPS, LoraOptions
from dgpo_cli.models.random_init import configuration
from dgpo_cli.models.shapes import SHAPES, shape_of
from dgpo_cli.models.ways import WAYS
from dgpo_cli.planning.plan import CARDS, card_of, fits, plan, require_fit
from dgpo_cli.planning.timing import Card, Speed, episode_tokens, seconds_by_phase
from dgpo_cli.training.sizes import memory
from dgpo_cli.training.sizes.job import Job

BENCH = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
QWEN = SHAPES["qwen-0.5b"]
JOB = Job(
    student=QWEN, reader=SHAPES["qwen-3b"], reader_8bit=False, distribution=False, rl=True, reference=False,
    tokens=4096, trained=4096, chunk=256, slots=16, capacity=4096, checkpointing=True, accelerated=True,
)  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_real_model(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(name))
    assert SHAPES[name].parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["qwen-0.5b", "llama-8b"])
def test_the_critic_trains_what_is_counted(name):
    config = configuration(name)
    config.num_hidden_layers, config.vocab_size = 1, 1000
    critic = Critic(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), seed=0)
    trained = sum(p.numel() for p in critic.parameters() if p.requires_grad)
    assert memory.critic_trained(replace(SHAPES[name], layers=1, vocabulary=1000)) == trained


def test_fixed_parts_by_hand():
    parts = memory.by_part(JOB)
    assert parts["student weights"] == 4 * 494_032_768
    assert parts["optimizer"] == 8 * (494_032_768 + 494_032_768 + 897)
    assert parts["KV cache"] == 2 * 24 * 16 * 4096 * 2 * 64 * 2  # keys and values, 2 heads of 64, bf16
    assert parts["copy to write with"] == 2 * 494_032_768
    assert parts["captured graphs"] == (2 + 4) * 16 * 151_936 + 4 * 4 * 16 * 151_936
    assert memory.captured(replace(JOB, slots=64)) == 6 * 64 * 151_936 + 4 * 4 * 2**23
    assert not {"copy to write with", "captured graphs"} & memory.by_part(replace(JOB, slots=0)).keys()
    assert parts["teacher"] == 2 * 3_085_938_688
    eight = memory.by_part(replace(JOB, reader_8bit=True))["teacher"]
    linear = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    assert eight == linear + 2 * (3_085_938_688 - linear)


def test_8_bit_moments_and_a_shared_critic_by_hand():
    student, embedding = 494_032_768, 151_936 * 896
    eight = memory.by_part(replace(JOB, adam_8bit=True))
    narrow = 2 * (student - embedding) + 897
    assert eight["optimizer"] == 8 * 2 * embedding + 2 * (1 + 4 / 256) * narrow
    shared = memory.by_part(replace(JOB, shared_critic=True))
    assert shared["critic weights"] == 4 * 897 and shared["optimizer"] == 8 * (student + 897)
    assert memory.activations(replace(JOB, shared_critic=True)) == memory.activations(JOB) / 2


def test_an_adapter_and_frozen_embeddings_by_hand():
    student, embedding, hidden, inner = 494_032_768, 151_936 * 896, 896, 4864
    maps = ("q_proj", "v_proj", "down_proj")
    adapter = 24 * 8 * ((hidden + hidden) + (hidden + 128) + (inner + hidden))
    assert memory.adapter_values(QWEN, 8, maps) == adapter
    low = memory.by_part(replace(JOB, adapter=adapter))
    assert low["adapters"] == 4 * 2 * adapter and low["student weights"] == 4 * student
    assert memory.trained_values(replace(JOB, adapter=adapter)) == 2 * adapter + 897
    assert low["optimizer"] == 8 * (2 * adapter + 897)
    on_cpu = replace(JOB, adapter=adapter, accelerated=False)
    assert memory.by_part(on_cpu)["copy to write with"] == 4 * student
    assert "copy to write with" not in memory.by_part(replace(on_cpu, slots=0))
    frozen = memory.by_part(replace(JOB, frozen_embeddings=True))
    assert frozen["optimizer"] == 8 * (2 * (student - embedding) + 897) and "adapters" not in frozen


def test_an_adapter_has_as_many_values_as_are_counted():
    model = qwen(50)
    add_adapter(model, LoraOptions(4), seed=0)
    shape = replace(QWEN, hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2, vocabulary=50)
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.adapter_values(shape, 4, LINEAR_MAPS) == made


def test_remedies_are_named_until_they_are_taken():
    card, recipe = CARDS["h200"], recipes.load("paper-qwen3b-0.5b")
    before = {stage.stage: stage.remedies for stage in plan(recipe, {}, card)}
    assert before["rl"]["optimizer"] == before["kd"]["optimizer"] == "-o optimizer=adamw-8bit"
    assert before["rl"]["critic weights"] == "-o critic=shared" and "critic weights" not in before["kd"]
    taken = {"optimizer": "adamw-8bit", "critic": "shared"}
    after = {stage.stage: stage for stage in plan(recipe, taken, card)}
    assert not {"optimizer", "critic weights"} & after["rl"].remedies.keys()
    assert "optimizer" not in after["kd"].remedies


@pytest.mark.parametrize("name", ["qwen3b-0.5b-24gb", "qwen3b-0.5b-80gb", "teacher-qwen3b-80gb", "paper-qwen3b-0.5b"])
@pytest.mark.parametrize("gpu", ["8GB", "12GB", "16GB", "24GB", "48GB", "cpu:12GB"])
def test_what_is_advised_leads_to_a_fit_and_nothing_is_missed(name, gpu):
    """Advice is followed until it fits; where none is given, everything small at once does not fit either."""
    card, recipe, taken = card_of(gpu), recipes.load(name), {}
    small = ["teacher_8bit=true", "optimizer=adamw-8bit", "critic=shared", "lora.rank=16", "rollout.wave=8",
             "gradient_checkpointing=true", "micro_batch_tokens=4096", "chunk_tokens=128"]  # fmt: skip
    least = {stage.stage: fits(stage, card) for stage in plan(recipe, parse_options(small), card)}
    while True:
        try:
            require_fit(plan(recipe, parse_options([f"{key}={value}" for key, value in taken.items()]), card), card)
        except ConfigError as error:
            stage = error.message.partition("]")[0].removeprefix("[")
            if not error.hint.startswith("try -o "):
                assert not least[stage], error.message
                return
            option, _, value = error.hint.removeprefix("try -o ").partition("=")
            assert least[stage] and taken.get(option) != value
            taken[option] = value
        else:
            assert all(least.values())
            return


def test_a_critic_that_shares_the_body_costs_no_pass_of_its_own():
    speed = Speed(QWEN, None, RolloutSettings(wave=64), 512, CARDS["h200"], critic=True)
    own, shared = seconds_by_phase(speed), seconds_by_phase(replace(speed, shared_critic=True))
    assert own["update"] == pytest.approx(2 * shared["update"])
    assert own["signals"] == pytest.approx(2 * shared["signals"])


def test_what_a_layer_keeps_by_hand():
    assert memory.kept_per_token(QWEN, half=False) == 4 * (10 * 896 + 4 * 4864)
    assert memory.kept_per_token(QWEN, half=True) == 20 * 896 + 8 * 896 + 8 * 4864


@pytest.mark.parametrize(
    "change", [{"tokens": 16384}, {"chunk": 1024}, {"slots": 64}, {"checkpointing": False}, {"reference": True}]
)
def test_more_of_anything_takes_more(change):
    assert sum(memory.by_part(replace(JOB, **change)).values()) > sum(memory.by_part(JOB).values())


def test_time_by_hand():
    rollout = RolloutSettings(wave=64)
    assert episode_tokens(rollout) == (300 + 3 * 500 + 400, 400)
    speed = Speed(QWEN, None, rollout, 512, CARDS["h200"], critic=True)
    seconds = seconds_by_phase(speed)
    forward = 2 * 512 * 2200 * 494_032_768 / (0.35 * 989e12)
    assert seconds["update"] == pytest.approx(6 * forward)  # two models, forward and twice as much backward
    assert seconds["signals"] == pytest.approx(2 * forward)
    prefills = 2 * 512 * 1800 * 494_032_768 / (0.35 * 989e12)
    cache = 2 * 24 * 2 * 64 * 2 * 64 * 2200 / 2  # of 64 episodes at half of their final length
    step = (2 * 494_032_768 + cache) / (0.6 * CARDS["h200"].bandwidth)
    assert step < 24 * 0.05e-3
    assert seconds["rollout"] == pytest.approx(8 * 400 * 24 * 0.05e-3 + prefills)  # eight waves, 400 tokens each
    eager = seconds_by_phase(replace(speed, eight_bit=True))["rollout"]
    assert eager == pytest.approx(8 * 400 * 24 * 0.8e-3 + prefills)
    many = seconds_by_phase(replace(speed, rollout=RolloutSettings(wave=512)))["rollout"]
    assert many == pytest.approx(400 * (2 * 494_032_768 + 8 * cache) / (0.6 * CARDS["h200"].bandwidth) + prefills)


def test_cards():
    assert card_of("H200") == CARDS["h200"]
    assert (card_of("32GB").gib, card_of("32GB").flops) == (32, CARDS["rtx4090"].flops)
    with pytest.raises(ConfigError, match="unknown card"):
        card_of("voodoo")


def test_a_core_counts_as_what_it_reaches_and_a_card_as_its_data_sheet():
    rollout = RolloutSettings(max_turns=2, max_new_tokens=50, max_observation_tokens=320)
    cpu = Card(16, 2 * 60e9, 20e9, accelerated=False)
    assert episode_tokens(rollout) == (300 + 2 * 320 + 3 * 50, 150)
    update = seconds_by_phase(Speed(QWEN, None, rollout, 8, cpu))["update"]
    assert update == pytest.approx(3 * 2 * 8 * 1090 * 494_032_768 / 120e9)
    card = seconds_by_phase(Speed(QWEN, None, rollout, 8, replace(cpu, accelerated=True)))["update"]
    assert card == pytest.approx(update / 0.35)


def test_a_cpu_and_a_model_of_ones_own(dgpo, offline, folder):
    Path("own.toml").write_text(
        f'[kd]\nmethod = "seqkd"\nstudent = "{offline.student}"\nteacher = "{offline.teacher}"\n'
    )
    ended = dgpo("plan", "own.toml", "--gpu", "cpu:16GB", "--json")
    assert ended.status == 0, ended.err
    (stage,) = json.loads(ended.out)["stages"]
    assert "allocator overhead" not in stage["memory_bytes"] and stage["memory_bytes"]["libraries"] == memory.LIBRARIES
    parameters = 4 * shape_of(str(offline.student)).parameters
    assert (stage["memory_bytes"]["student weights"], stage["memory_bytes"]["optimizer"]) == (
        parameters,
        2 * parameters,
    )
    assert card_of("cpu").gib > 0.1 and not card_of("cpu").accelerated
    told = json.loads(ended.out)["assumptions"]
    assert not [line for line in told if "CUDA" in line or "GPU" in line or "card" in line]
    card = json.loads(dgpo("plan", "own.toml", "--gpu", "24GB", "--json").out)["assumptions"]
    assert [line for line in card if "CUDA" in line] and not [
        line for line in card if "CPU" in line or "a core" in line
    ]
    unnamed = dgpo("plan", "own.toml")
    assert unnamed.status == 1 and unnamed.errors == ["error: own.toml names no card"]


def test_a_plan_counts_episodes_that_the_models_context_holds(dgpo, offline, folder):
    """As the start of the run does: a context of 256 tokens holds no 4,096."""
    config = offline.student / "config.json"
    context = json.loads(config.read_text())["max_position_embeddings"]
    assert context < 4096
    Path("own.toml").write_text(f'[rl]\nstudent = "{offline.student}"\nteacher = "{offline.teacher}"\nbatch_size = 8\n')
    ended = dgpo("plan", "own.toml", "--gpu", "24GB", "--json")
    assert ended.status == 0, ended.err
    (stage,) = json.loads(ended.out)["stages"]
    shape = shape_of(str(offline.student))
    assert stage["memory_bytes"]["KV cache"] == memory.kv_cache(
        replace(JOB, student=shape, slots=64, capacity=context, accelerated=True)
    )


def test_the_command_adds_up_and_refuses_what_does_not_fit(dgpo):
    ended = dgpo("plan", "qwen3b-0.5b-24gb", "--json")
    assert ended.status == 0, ended.err
    for stage in json.loads(ended.out)["stages"]:
        assert sum(stage["memory_bytes"].values()) == pytest.approx(stage["total_bytes"])
        assert stage["total_bytes"] < 24 * 2**30
    refused = dgpo("plan", "paper-qwen3b-0.5b", "--gpu", "24GB")
    assert refused.status == 1
    assert refused.errors == ["error: [kd] needs 41.7 GiB of 24; the largest part is activations with 24.5 GiB"]
    assert "try -o gradient_checkpointing=true" in refused.err
    hopeless = dgpo("plan", "teacher-qwen3b-24gb")
    assert "the largest part is optimizer with 46.0 GiB" in hopeless.err and "no setting makes this fit" in hopeless.err
    assert dgpo("plan", "qwen3b-0.5b-24gb", "-o", "rollout.waves=3").status == 1
    assert "no option 'waves'" in dgpo("plan", "qwen3b-0.5b-24gb", "-o", "rollout.waves=3").err


def test_a_24_gb_card_holds_student_critic_and_8_bit_teacher_at_the_batches_that_are_named(dgpo):
    """Every stage fits at what the plan says goes through the models at once, and four times as much does not."""
    ended = dgpo("plan", "qwen3b-0.5b-24gb", "--gpu", "24GB", "--json")
    assert ended.status == 0, ended.err
    stages = {stage["stage"]: stage for stage in json.loads(ended.out)["stages"]}
    assert stages["rl"]["at_once"] == {"micro_batch_tokens": 4096, "chunk_tokens": 128, "rollout.wave": 16}
    assert stages["kd"]["at_once"] == {"micro_batch_tokens": 4096, "chunk_tokens": 128}
    assert stages["distill-data"]["at_once"] == {"rollout.wave": 32}
    parts = stages["rl"]["memory_bytes"]
    linear = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    assert parts["teacher"] == linear + 2 * (3_085_938_688 - linear), "8 bit"
    assert parts["student weights"] == 4 * 494_032_768
    assert parts["critic weights"] == 4 * (494_032_768 + 897)
    assert stages["rl"]["total_bytes"] < 24 * 2**30
    shown = dgpo("plan", "qwen3b-0.5b-24gb")
    assert "at once: micro_batch_tokens 4096, chunk_tokens 128, rollout.wave 16" in shown.out
    assert dgpo("plan", "qwen3b-0.5b-24gb", "-o", "micro_batch_tokens=16384", "-o", "rollout.wave=64").status == 1


def test_a_micro_batch_holds_a_whole_episode(dgpo):
    """`micro_batch_tokens` below the longest episode: one goes through alone, and that is what is planned for."""
    ended = dgpo("plan", "qwen3b-0.5b-24gb", "--json", "-o", "micro_batch_tokens=512")
    assert json.loads(ended.out)["stages"][2]["at_once"]["micro_batch_tokens"] == 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["kd small", "rl k1"])
def test_the_estimate_is_within_15_percent_of_a_real_step(name):
    made = subprocess.run([sys.executable, str(BENCH), name, "--json"], capture_output=True, text=True, check=True)
    (row,) = json.loads(made.stdout)
    assert row["estimate"] == pytest.approx(row["measured"], rel=0.15)


def test_the_plan_knows_the_sizes_that_the_code_works_with():
    """They stand in the plan again, which imports neither engine nor training, so that it needs no torch."""
    assert memory.SAMPLED_LOGITS == sampling._AT_ONCE
    assert memory.BLOCK_LOGITS[1] == WAYS.block_logits
