"""Runs and recipes of earlier versions: read under today's names, and resumed. Commit f8414ed wrote `golden/runs`."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dgpo_cli.core import recipes
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.recipes import config_of, load
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.setting_names import as_today
from dgpo_cli.errors import ConfigError
from dgpo_cli.training.settings import KDSettings, RLSettings

RUNS = Path(__file__).parents[1] / "golden" / "runs"
KINDS = {"kd-defaults": KDSettings, "kd-gkd": KDSettings, "rl-defaults": RLSettings, "rl-dgpo": RLSettings}


def settings_of(name):
    return apply_options(KINDS[name], config_of(RUNS / name / "config.toml", name[:2]))


def test_settings_of_earlier_runs_are_read_under_todays_names():
    kd, rl = settings_of("kd-gkd"), settings_of("rl-dgpo")
    assert (kd.eval_data, kd.eval_limit, kd.eval_every, kd.save_every) == ("data/validation.jsonl", 20, 10, None)
    assert (rl.eval_data, rl.eval_limit, rl.save_every, rl.epochs) == ("data/validation.jsonl", 20, 2, 1)
    assert (kd.rollout.wave, rl.reward, rl.objective) == (8, {"em": 1.0, "format": 0.2}, {"kl_coef": 0.1})
    assert settings_of("rl-defaults").teacher is None


@pytest.mark.parametrize("name", KINDS)
def test_an_earlier_run_goes_on(name, tmp_path):
    shutil.copytree(RUNS / name, tmp_path / "runs" / name)
    command, config = name[:2], asdict(settings_of(name))
    for options in ({}, {"resume": tmp_path / "runs" / name}, {"out": tmp_path / "runs" / name}):
        with RunDir.open(command, config, root=tmp_path / "runs", **options) as run:
            assert run.resumed and run.path == tmp_path / "runs" / name


def test_another_setting_is_named_as_today(tmp_path):
    shutil.copytree(RUNS / "rl-dgpo", tmp_path / "run")
    config = asdict(replace(settings_of("rl-dgpo"), eval_limit=21))
    with pytest.raises(ConfigError, match=r"other settings than this command: eval_limit: 20 there, 21 here$"):
        RunDir.open("rl", config, resume=tmp_path / "run")


def test_what_an_earlier_run_did_not_have_sets_runs_apart_where_it_decides(tmp_path):
    kd, rl = settings_of("kd-gkd"), settings_of("rl-dgpo")
    for name in ("kd-gkd", "rl-dgpo"):
        shutil.copytree(RUNS / name, tmp_path / name)
    with RunDir.open("kd", asdict(replace(kd, save_every=3)), resume=tmp_path / "kd-gkd") as run:
        assert run.resumed, "how often a state is saved changes no result"
    with pytest.raises(ConfigError, match="epochs: 1 there, 2 here"):
        RunDir.open("rl", asdict(replace(rl, epochs=2)), resume=tmp_path / "rl-dgpo")


def test_one_setting_under_two_names_is_refused():
    assert as_today("rl", {"eval_questions": 3}) == {"eval_limit": 3}
    assert as_today("kd", {"eval_questions": "q"}) == {"eval_data": "q"}
    with pytest.raises(ConfigError, match="eval_questions is an earlier name of eval_limit"):
        as_today("rl", {"eval_questions": 3, "eval_limit": 4})


def test_a_recipe_of_earlier_days_is_read(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[rl]\neval_questions = 7\nvalidation = "v.jsonl"\n[kd]\neval_questions = "v.jsonl"\n')
    assert load(str(file)).stages == {"rl": {"eval_limit": 7, "eval_data": "v.jsonl"}, "kd": {"eval_data": "v.jsonl"}}
    assert config_of(file, "rl") == {"eval_limit": 7, "eval_data": "v.jsonl"}


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_have_todays_names(name):
    for stage, table in load(name).stages.items():
        assert as_today(stage, table) == table
        assert not {"eval_questions", "validation"} & table.keys()


@pytest.mark.parametrize(
    ("command", "added", "other"),
    [
        ("eval", {"format": None, "stop_repeats": True}, {"format": None, "stop_repeats": False}),
        ("distill-data", {"format": None}, {"format": "tool_calls"}),
    ],
)
def test_work_begun_before_a_setting_existed_goes_on_where_it_computes_the_same(command, added, other):
    before = {"model": "m", "top_k": 3}
    assert config_digest(command, before | added) == config_digest(command, before)
    assert config_digest(command, before | other) != config_digest(command, before)
