"""All stages of the quickstart in a few steps each: what is made, reused, resumed and told."""

import copy
import json
import shutil
from contextlib import nullcontext

import pytest
from tests.offline import small_recipe
from typer.testing import CliRunner

from dgpo_cli.cli import app
from dgpo_cli.errors import ConfigError
from dgpo_cli.offline import quickstart
from dgpo_cli.offline.quickstart import ROWS, Quickstart


@pytest.fixture(scope="module")
def small():
    return small_recipe()


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """A finished small quickstart: its folder, what it said, and its result."""
    folder, said = tmp_path_factory.mktemp("quickstart"), []
    work = Quickstart(folder, seed=3, device="cpu", say=said.append, bar=no_bar, settings=small)
    return folder, said, work.run(), work


def no_bar(description, unit):
    return nullcontext(lambda *_: None)


def test_every_row_is_measured_on_the_same_questions(made):
    _, _, result, _ = made
    assert tuple(result.rows) == ROWS and result.seconds > 0
    assert {row.questions for row in result.rows.values()} == {30}
    for row in result.rows.values():
        assert set(row.em_by_hops) == {"1", "2"} and 0 <= row.em <= 1


def test_evaluations_are_runs_of_which_report_and_compare_show_everything(made, tmp_path):
    from dgpo_cli.evaluation.compare import compare, read_side
    from dgpo_cli.viewing.report import write_report

    folder, _, result, _ = made
    runs = [folder / "runs" / f"eval-{row}" for row in ROWS]
    page = write_report(runs, tmp_path / "report.html", questions=30)
    assert (page.questions, page.warnings) == (30, [])
    for run, row in zip(runs, result.rows.values(), strict=True):
        lines = [json.loads(line) for line in (run / "tinyworld.jsonl").read_text().splitlines()]
        right = "".join(str(int(line["outcome"]["em"])) for line in sorted(lines[1:], key=order_of(folder)))
        assert right == row.right
        assert json.loads((run / "report.json").read_text())["benchmarks"]["tinyworld"]["em"] == row.em
    both = compare(read_side(str(runs[0])), read_side(str(runs[1])))
    assert both.comparable and both.benchmarks["tinyworld"].n == 30


def order_of(folder):
    asked = (folder / "world" / "test.jsonl").read_text().splitlines()
    places = {json.loads(line)["id"]: place for place, line in enumerate(asked)}
    return lambda line: places[line["question"]["id"]]


def test_an_interrupted_evaluation_asks_only_what_is_missing(made, small, tmp_path, monkeypatch):
    from dgpo_cli.agent.agent import Agent

    folder, _, first, _ = made
    copy_of = tmp_path / "copy"
    shutil.copytree(folder, copy_of)
    run = copy_of / "runs" / "eval-teacher"
    record = json.loads((run / "run.json").read_text())
    record.pop("result")
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    answers = (run / "tinyworld.jsonl").read_text().splitlines(keepends=True)
    (run / "tinyworld.jsonl").write_text("".join(answers[:15]))
    asked, finished = [], Agent.finished
    monkeypatch.setattr(Agent, "finished", lambda self, pairs, **kw: asked.extend(pairs) or finished(self, pairs, **kw))
    work = Quickstart(copy_of, seed=3, device="cpu", say=lambda _: None, bar=no_bar, settings=small)
    assert work.evaluate("teacher", copy_of / "runs" / "teacher") == first.rows["teacher"]
    assert len(asked) == 30 - 14


def test_the_same_weights_in_another_time_leave_the_budget_as_it_is(made, tmp_path):
    folder, _, _, work = made
    copy_of = tmp_path / "copy"
    shutil.copytree(folder, copy_of)
    again = Quickstart(copy_of, seed=3, device="cpu", say=lambda _: None, bar=no_bar, settings=work.recipe)
    seconds = again.budget("dgpo")
    record = copy_of / "runs" / "dgpo" / "run.json"
    changed = json.loads(record.read_text())
    changed["result"]["seconds"] = seconds + 100
    record.write_text(json.dumps(changed))
    assert again.budget("dgpo") == seconds
    shutil.copytree(folder / "runs" / "student" / "best", copy_of / "runs" / "dgpo" / "best", dirs_exist_ok=True)
    assert again.budget("dgpo") == seconds + 100, "of other weights"


def test_rl_rows_start_from_the_cold_start_and_kd_longer_gets_dgpos_time(made):
    folder, _, _, work = made
    for row in ("ppo", "dgpo", "dgpo_k1", "kd_longer"):
        config = (folder / "runs" / row / "config.toml").read_text()
        assert f'student = "{folder / "runs" / "kd"}"' in config
    longer = json.loads((folder / "runs" / "kd_longer" / "run.json").read_text())["result"]
    dgpo = json.loads((folder / "runs" / "dgpo" / "run.json").read_text())["result"]
    assert longer["seconds"] >= dgpo["seconds"]
    assert all(points for points in work.curves().values())


def test_a_second_run_reuses_every_stage_and_says_so(made, small):
    folder, _, first, _ = made
    said = []
    again = Quickstart(folder, seed=3, device="cpu", say=said.append, bar=no_bar, settings=small).run()
    assert again.rows == first.rows
    stages = {"world and index", "teacher", "student", "distill-data", "kd", "ppo", "dgpo", "dgpo_k1", "kd_longer"}
    assert stages <= set(again.reused)
    assert all("reused" in line for line in said if not line.startswith("distill-data: "))


def test_a_moved_folder_goes_on_and_finished_work_is_replaced_only_when_that_is_allowed(made, small, tmp_path):
    folder, _, first, _ = made
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, moved)

    def work(settings, seed=3):
        return Quickstart(moved, seed=seed, device="cpu", say=said.append, bar=no_bar, settings=settings)

    said: list[str] = []
    again = work(small).run()
    assert again.rows == first.rows and not any("anew" in line or " s, best" in line for line in said)
    changed = copy.deepcopy(small)
    changed["teacher"]["lr"] = 0.004
    weights = (moved / "runs/teacher/best/model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"runs/teacher is finished .* lr: 0\.005 there, 0\.004 here") as refused:
        work(changed).run()
    assert "--replace" in refused.value.hint
    with pytest.raises(ConfigError, match=r"world is finished .* seed: 3 there, 4 here"):
        work(small, seed=4).run()
    assert (moved / "runs/teacher/best/model.safetensors").read_bytes() == weights
    asked: list[str] = []
    allowed = work(changed)
    allowed.may_replace = lambda why: not asked.append(why)
    allowed.run()
    assert len(asked) == 1 and "lr: 0.005" in asked[0]
    assert (moved / "runs/teacher/best/model.safetensors").read_bytes() != weights


@pytest.mark.slow
def test_changed_settings_repeat_their_stage_and_what_follows_from_it(small, tmp_path):
    def run(settings):
        work = Quickstart(tmp_path, seed=3, device="cpu", say=lambda line: None, bar=no_bar, settings=settings)
        work.may_replace = lambda why: True
        return set(work.run().reused)

    run(small)
    changed = copy.deepcopy(small)
    changed["ppo"]["lr"] = 7e-4
    assert {"teacher", "distill-data", "kd", "dgpo", "eval-kd"} <= run(changed)
    # The trajectories lie in the same place and are others: the cold start on them is another one too.
    changed["distill-data"]["questions"] = 25
    kept = run(changed)
    assert {"world and index", "teacher", "student", "eval-teacher"} <= kept
    assert kept.isdisjoint({"distill-data", "kd", "ppo", "dgpo", "eval-kd", "eval-dgpo"})


@pytest.mark.slow
def test_the_search_covers_the_grid(made, small):
    folder, _, _, _ = made
    found = Quickstart(folder, seed=3, device="cpu", say=lambda line: None, bar=no_bar, settings=small).search()
    rates = [(trial.row, trial.changes["lr"]) for trial in found]
    assert rates == [(row, lr) for row in ("ppo", "dgpo_k1", "dgpo") for lr in (1e-3, 2e-3)]
    assert all(0 <= trial.validation_em <= 1 for trial in found)


def test_the_command_tells_what_comes_next_and_prepares_it(made, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Quickstart, "default_recipe", lambda *_: small)
    folder = made[0]
    runner = CliRunner()
    shown = runner.invoke(app, ["quickstart", "--out", str(folder), "--seed", "3"])
    assert shown.exit_code == 0, shown.output
    for expected in ("dgpo chat", "30 held-out test questions", "dgpo, full-loss", "validation EM"):
        assert expected in shown.stdout
    assert (folder / "learning-curves.png").read_bytes().startswith(b"\x89PNG")
    asked = runner.invoke(app, ["quickstart", "--out", str(folder), "--seed", "3", "--json", "--quiet"])
    result = json.loads(asked.stdout)
    assert set(result["em"]) == set(ROWS) and result["seconds"] >= 0
    answered = runner.invoke(
        app, ["eval", "--bench", "tinyworld", "--bench-dir", str(folder / "world"), "--limit", "5", "--json"]
    )
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["benchmarks"]["tinyworld"]["n"] == 5


def test_the_recipe_has_only_settings_that_exist():
    """Every shipped value reaches a settings class; an unknown one would be refused there."""
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.core.config import apply_options
    from dgpo_cli.training.settings import KDSettings, RLSettings

    settings = Quickstart.default_recipe()
    apply_options(RolloutSettings, settings["rollout"])
    for stage in ("teacher", "kd"):
        apply_options(KDSettings, settings[stage] | {"student": "s", "teacher": "t", "trajectories": "d"})
    for row in quickstart.RL_ROWS:
        options = settings["rl"] | settings[row] | {"student": "s", "teacher": "t", "index": "i", "questions": "q"}
        apply_options(RLSettings, options)
