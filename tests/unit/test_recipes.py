"""Shipped recipes: each is read, dry-run as its commands would run it, and says truly whether it fits."""

import json
import re
from pathlib import Path

import pytest
from tests.offline import write_one_trajectory

from dgpo_cli.commands.common.given import recorded
from dgpo_cli.core import recipes
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.aliases import ALIASES
from dgpo_cli.planning.plan import GIB, card_of, fits, plan

NAMES = recipes.names()
RUNS = [(name, stage) for name in NAMES for stage in recipes.load(name).stages]


@pytest.mark.parametrize(("name", "stage"), RUNS, ids=[" ".join(run) for run in RUNS])
def test_a_dry_run_takes_the_recipes_settings(name, stage, offline, dgpo, folder):
    """Models that are here stand in for those of the hub, whose names are checked apart."""
    arguments = [stage, "--config", name, "--teacher", str(offline.teacher), "--dry-run", "--json"]
    data = write_one_trajectory(offline, folder / "trajectories.jsonl")
    asked = [{"id": str(i), "question": "Who?", "golden_answers": ["A"]} for i in range(600)]
    write_jsonl_atomic(folder / "questions.jsonl", asked)
    if stage == "kd":
        arguments += ["--data", str(data)]
    else:
        arguments += ["--index", str(offline.index), "--data", str(folder / "questions.jsonl")]
    if stage != "distill-data":
        arguments += ["--student", str(offline.student)]
    ended = dgpo(*arguments)
    assert ended.status == 0, ended.err
    shown = json.loads(ended.out)
    table = recipes.load(name).stages[stage]
    given = {"student", "teacher", "questions"}
    assert recipes.merged(shown, {k: v for k, v in table.items() if k not in given}) == shown
    assert {table[k] for k in ("student", "teacher") if k in table} <= set(ALIASES)


@pytest.mark.parametrize(
    ("stage", "method", "given"),
    [("rl", "ppo", ["--method", "ppo"]), ("rl", "grpo", ["-o", "method=grpo"]), ("kd", "gkd", ["--method", "gkd"])],
)
def test_another_method_takes_all_of_a_recipe_but_its_objective(stage, method, given, offline, dgpo, folder):
    """Every row of the paper's table by the recipe of one card."""
    data = write_one_trajectory(offline, folder / "trajectories.jsonl")
    asked = [{"id": str(i), "question": "Who?", "golden_answers": ["A"]} for i in range(600)]
    write_jsonl_atomic(folder / "questions.jsonl", asked)
    name = "qwen3b-0.5b-24gb"
    ended = dgpo(
        stage, "--config", name, *given, "--student", str(offline.student), "--teacher", str(offline.teacher),
        "--data", str(data if stage == "kd" else folder / "questions.jsonl"), "--index", str(offline.index),
        "-o", "lr=0.5", "--dry-run", "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    shown, table = json.loads(ended.out), recipes.load(name).stages[stage]
    assert (shown["method"], shown["objective"], shown["lr"]) == (method, {}, 0.5)
    assert shown["micro_batch_tokens"] == table["micro_batch_tokens"]
    assert f"its settings of the objective are those of {table['method']}, and left out for {method}" in ended.err


def test_a_setting_of_the_objective_that_is_given_stays(tmp_path):
    """-o is about the method that was chosen, and a file about its own."""
    file = tmp_path / "mine.toml"
    file.write_text('[rl]\nmethod = "dgpo"\nobjective = { kl_gate = "always" }\n')
    assert recipes.config_of(file, "rl", "dgpo")["objective"] == recipes.config_of(file, "rl")["objective"]
    assert "objective" not in recipes.config_of(file, "rl", "ppo")
    given = recorded(file, ["objective.kl_coef=0.5"], "rl", "ppo")
    assert given == {"method": "dgpo", "objective": {"kl_coef": "0.5"}}


def test_a_recipe_without_a_method_is_for_the_default_one(dgpo, folder, offline):
    (folder / "mine.toml").write_text('[rl]\nobjective = { kl_gate = "always" }\n')
    ask = ("rl", "--config", "mine.toml", "--student", str(offline.student), "--teacher", str(offline.teacher))
    ask = (*ask, "--index", str(offline.index), "--data", str(offline.questions("train")), "--batch-size", "2")
    own = dgpo(*ask, "--dry-run", "--json")
    assert json.loads(own.out)["objective"] == {"kl_gate": "always"}, own.err
    other = dgpo(*ask, "--method", "ppo", "--dry-run", "--json")
    assert json.loads(other.out)["objective"] == {}, other.err
    assert "mine.toml: its settings of the objective are those of dgpo, and left out for ppo" in other.err


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_said_at_its_head_with_the_figures(name):
    recipe = recipes.load(name)
    card = card_of(recipe.card)
    too_large = {s.stage: f"{s.total / GIB:.1f}" for s in plan(recipe, {}, card) if not fits(s, card)}
    assert dict(re.findall(r"\[([\w-]+)\] needs ([\d.]+) GiB", recipe.note)) == too_large


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(("80gb", "24gb"))])
def test_fitted_recipes_keep_what_the_paper_trains_with(name):
    fitted = recipes.load(name)
    base = recipes.load(f"paper-{name.rsplit('-', 1)[0]}")
    for stage, table in base.stages.items():
        free = {"teacher_8bit", "gradient_checkpointing", "micro_batch_tokens", "chunk_tokens", "rollout", "optimizer"}
        assert {k: v for k, v in fitted.stages[stage].items() if k not in free} == {
            k: v for k, v in table.items() if k not in free
        }
        assert set(fitted.stages[stage].get("rollout", {})) <= {"wave", "overlap_steps"}
    rl = fitted.stages["rl"]
    assert (rl["batch_size"], rl["mini_batches"], rl["steps"]) == (512, 2, 1000)  # facts of the paper


def test_a_file_goes_before_a_shipped_recipe_and_a_run_is_taken_whole(folder):
    assert recipes.config_of(Path("paper-qwen3b-0.5b"), "rl")["lr"] == 1e-6
    Path("paper-qwen3b-0.5b").write_text('[recipe]\nbase = "paper-qwen7b-0.5b"\n[rl]\nlr = 3e-6\n')
    own = recipes.config_of(Path("paper-qwen3b-0.5b"), "rl")
    assert (own["lr"], own["teacher"], own["objective"]["kl_coef"]) == (3e-6, "qwen-7b", 0.001)
    Path("config.toml").write_text('student = "a"\n[objective]\nclip = 0.1\n[rollout]\nwave = 2\n')
    assert recipes.config_of(Path("config.toml"), "rl")["objective"] == {"clip": 0.1}


def test_the_settings_of_a_run_are_for_its_own_command(folder):
    RunDir.open("kd", {"lr": 1e-3}).close()
    for given in ("kd-0001", "runs/kd-0001", "runs/kd-0001/config.toml"):
        assert recipes.config_of(Path(given), "kd") == {"lr": 1e-3}
        with pytest.raises(ConfigError, match=r"^runs/kd-0001 is a run of `dgpo kd`, not of `dgpo rl`$"):
            recipes.config_of(Path(given), "rl")


@pytest.mark.parametrize(
    ("name", "command", "says"),
    [
        ("paper-qwen3b-05b", "rl", "neither a file nor a recipe"),
        ("paper-teacher-qwen3b", "kd", r"has no \[kd\]"),
        ("quickstart", "rl", "neither a file nor a recipe"),
    ],
)
def test_wrong_names_are_told(name, command, says):
    with pytest.raises(ConfigError, match=says):
        recipes.config_of(Path(name), command)


def test_models_of_the_file_go_before_what_the_folder_remembers(offline, dgpo, folder):
    asked = offline.questions("train")
    text = f'student = "{offline.student}"\nteacher = "{offline.teacher}"\nindex = "{offline.index}"\n'
    text += f'questions = "{asked}"\nbatch_size = 4\n'
    Path("config.toml").write_text(text)
    Path(".dgpo").mkdir()
    ended = dgpo("rl", "--config", "config.toml", "--dry-run", "--json")
    assert ended.status == 0, ended.err
    shown = json.loads(ended.out)
    assert (shown["student"], shown["index"], shown["questions"]) == (
        str(offline.student),
        str(offline.index),
        str(asked),
    )


def test_the_list_and_one_recipe(dgpo):
    listed = json.loads(dgpo("recipes", "--json").out)["recipes"]
    assert [row["name"] for row in listed] == NAMES
    rows = {row["name"]: row for row in listed}
    assert rows["llama8b-1b-24gb"]["too_large"] == ["kd", "rl"] and rows["qwen7b-0.5b-24gb"]["too_large"] == []
    assert rows["qwen7b-0.5b-24gb"]["effective_batch"] == 512
    assert 'base = "paper-qwen7b-0.5b"' in dgpo("recipes", "qwen7b-0.5b-24gb").out


BROKEN = {
    "recipe is a number": ("recipe = 5\n[rl]\nsteps = 1\n", "`recipe` is 5, not an object"),
    "recipe is a list": ("recipe = []\n[rl]\nsteps = 1\n", "`recipe` is a list"),
    "base is a number": ("[recipe]\nbase = 5\n[rl]\nsteps = 1\n", "`recipe.base` is 5"),
    "title is a number": ("[recipe]\ntitle = 5\n[rl]\nsteps = 1\n", "`recipe.title` is 5"),
    "card is a list": ("[recipe]\ncard = []\n[rl]\nsteps = 1\n", "`recipe.card` is a list"),
    "another field": ("[recipe]\nbasis = ''\n[rl]\nsteps = 1\n", "`recipe.basis` is not known"),
    "command is a number": ("rl = 5\n[kd]\nlr = 1.0\n", "`rl` is 5"),
    "command is a list": ("[recipe]\n[[rl]]\nsteps = 1\n", "`rl` is a list of 1"),
    "its own base": ("[recipe]\nbase = 'r.toml'\n[rl]\nsteps = 1\n", "its base comes back to itself"),
    "a ring of two": ("[recipe]\nbase = 'other.toml'\n[rl]\nsteps = 1\n", "its base comes back to itself"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_recipe_of_another_form_is_one_line_in_every_command(name, dgpo, folder):
    content, says = BROKEN[name]
    Path("r.toml").write_text(content)
    Path("other.toml").write_text("[recipe]\nbase = 'r.toml'\n")
    for argv in (("recipes", "r.toml"), ("plan", "r.toml"), ("rl", "--config", "r.toml", "--dry-run")):
        ended = dgpo(*argv)
        assert ended.status == 1 and len(ended.errors) == 1, (argv, ended.err)
        assert says in ended.errors[0] and "r.toml" in ended.errors[0]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("student = 5", "`student` is 5, not a non-empty text"),
        ("rollout = 5", "`rollout` is 5, not an object"),
        ("index = ''", "`index` is ''"),
        ("demonstrations = 3", "`demonstrations` is 3"),
    ],
)
@pytest.mark.parametrize("command", ["distill-data", "kd", "rl"])
def test_a_setting_of_another_type_is_named_with_its_file(table, says, command, dgpo, folder):
    Path("c.toml").write_text(table + "\n")
    ended = dgpo(command, "--config", "c.toml", "--dry-run")
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert says in ended.errors[0] and "c.toml" in ended.errors[0]


@pytest.mark.parametrize("card", ["9" * 400, "9" * 5000 + "GB", "cpu:" + "9" * 5000, "0GB", "\u0663GB", ""])
def test_a_memory_that_no_card_has_is_refused(card):
    with pytest.raises(ConfigError, match="unknown card") as caught:
        card_of(card)
    assert len(caught.value.message) < 80


@pytest.mark.parametrize("setting", ["batch_size", "steps", "rollout.wave", "rollout.max_tokens", "seed"])
def test_a_number_beyond_64_bits_is_refused(setting, dgpo):
    for digits in (20, 400, 5000):
        ended = dgpo("plan", "qwen3b-0.5b-24gb", "-o", f"{setting}={'9' * digits}")
        assert ended.status == 1 and len(ended.errors) == 1, ended.err[-300:]
        assert len(ended.errors[0]) < 200 and setting.rpartition(".")[2] in ended.errors[0]
