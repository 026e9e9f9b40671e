"""The ladder in a few steps per row: records, what is made again and what is not, the table."""

import copy
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from typer.testing import CliRunner

from dgpo_cli.cli import app
from dgpo_cli.core.config import apply_options, load_toml
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives import registry
from dgpo_cli.offline import reproduce, reproduce_rows
from dgpo_cli.offline.reproduce import Ladder, table
from dgpo_cli.offline.reproduce_rows import choose, recipe, row_specs
from dgpo_cli.training.settings import KDSettings, RLSettings

ROWS = ["kd", "dgpo", "opd", "kd-kd"]


@pytest.fixture(scope="module")
def small():
    settings = copy.deepcopy(recipe("tiny"))
    settings["world"] |= {"test_questions": 30, "validation_questions": 10, "demonstrations": 80}
    settings["distill-data"] |= {"questions": 30, "keep": "all"}
    for stage in ("teacher", "student", "kd"):
        settings[stage] |= {"steps": 2, "eval_every": 1}
    settings["rl"] |= {"steps": 2, "batch_size": 16, "eval_every": 1, "save_every": 1, "eval_limit": 10}
    for row in settings["rows"].values():
        row |= {key: value for key, value in (("steps", 2), ("batch_size", 8), ("eval_every", 1)) if key in row}
    settings["search"] = {"kd": [1e-3, 2e-3], "rl": [1e-3]}
    return settings


def ladder(folder, records, settings):
    return Ladder(
        folder,
        records,
        seed=3,
        device="cpu",
        say=lambda line: None,
        bar=lambda description, unit: nullcontext(lambda *_: None),
        settings=settings,
    )


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    return folder, ladder(folder / "work", folder / "records", small).run(ROWS)


@pytest.mark.slow
def test_records_alone_are_enough_and_a_missing_one_is_made_again_alike(made, small, tmp_path):
    folder, first = made
    shutil.copytree(folder / "records", tmp_path / "records")
    elsewhere = ladder(tmp_path / "work", tmp_path / "records", small)
    assert elsewhere.run(ROWS) == first
    assert not (tmp_path / "work").exists()
    (tmp_path / "records" / "seed-3" / "dgpo.json").unlink()
    again = elsewhere.run(ROWS)["dgpo"]
    assert again.result == first["dgpo"].result and again.digest == first["dgpo"].digest
    assert (tmp_path / "work" / "runs" / "kd").is_dir() and not (tmp_path / "work" / "runs" / "opd").exists()


def test_a_record_of_other_settings_does_not_count(made, small):
    folder, _ = made
    changed = copy.deepcopy(small)
    changed["rows"]["kd"]["lr"] = 3e-3
    before, after = ladder(folder, folder, small), ladder(folder, folder, changed)
    differ = {name for name in (*ROWS, "taid", "teacher") if before.digest(name) != after.digest(name)}
    assert differ == set(ROWS)  # all of them start from kd


def test_a_damaged_record_is_made_again(made, small, tmp_path):
    path = tmp_path / "kd.json"
    path.write_text((made[0] / "records" / "seed-3" / "kd.json").read_text()[:50])
    assert reproduce.read_record(path) is None and reproduce.read_record(tmp_path / "none.json") is None


def test_the_continued_row_has_the_time_of_the_other(made):
    _, records = made
    assert records["kd-kd"].train_seconds >= records["dgpo"].train_seconds > 0


def test_the_table_compares_by_question(made, small):
    _, records = made
    wanted = dict(records)
    wanted["kd"] = with_right(records["kd"], "1" * 10 + "0" * 20)
    wanted["dgpo"] = with_right(records["dgpo"], "0" * 5 + "1" * 15 + "0" * 10)
    rows = {row.name: row for row in table(row_specs(small), [wanted, wanted], "dgpo")}
    assert list(rows) == ["student", "teacher", "kd", "dgpo", "opd", "kd-kd"]
    assert rows["kd"].em == [pytest.approx(1 / 3)] * 2 and rows["dgpo"].em == [pytest.approx(0.5)] * 2
    difference = rows["kd"].difference
    assert difference.mean == pytest.approx(-5 / 30) and rows["dgpo"].difference is None
    # Five questions only kd got right, ten only dgpo, twice: the standard error of the mean is known.
    error = np.sqrt((15 / 30 - (5 / 30) ** 2) / 60)
    assert difference.over_questions.low == pytest.approx(-5 / 30 - 1.96 * error, abs=0.01)
    assert difference.over_questions.high == pytest.approx(-5 / 30 + 1.96 * error, abs=0.01)


def with_right(record, right):
    from dataclasses import replace

    return replace(record, result=replace(record.result, right=right))


@pytest.mark.slow
def test_the_search_has_one_record_per_trial(small, made):
    folder, _ = made
    found = ladder(folder / "work", folder / "records", small).search(["kd", "kd-kd"])
    assert [trial.changes["lr"] for trial in found[:2]] == [1e-3, 2e-3]
    best = max(found[:2], key=lambda trial: trial.validation_em).changes["lr"]
    assert [trial.changes for trial in found[2:]] == [{"lr": best, "ce_weight": weight} for weight in (0.0, 0.3)]
    stored = {p.name for p in (folder / "records" / "search" / "seed-3").iterdir()}
    names = ["lr0.001", "lr0.002", f"lr{best:g}-ce_weight0", f"lr{best:g}-ce_weight0.3"]
    assert stored == {f"kd-{name}.json" for name in names}
    tried = load_toml(folder / "work" / "runs" / f"kd-lr{best:g}-ce_weight0.3" / "config.toml")
    assert tried["objective"]["ce_weight"] == 0.3
    assert (folder / "records" / "seed-3" / "kd.json").is_file()


def test_the_command_ends_in_a_table_and_a_page(made, small, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_rows, "recipe", lambda scale, teacher: small)
    shutil.copytree(made[0] / "records", tmp_path / "results" / "fair")
    arguments = ["reproduce", "--seeds", "1", "--first-seed", "3", "--methods", ",".join(ROWS)]
    arguments += ["--out", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "DGPO (exact KL)" in shown.stdout and "KD, then OPD" in shown.stdout
    text = (tmp_path / "results" / "fair" / "README.md").read_text()
    assert text.count("\n|") == 2 + 6 and "29.8" in text  # the paper's KD
    assert (tmp_path / "results" / "fair" / "learning-curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--quiet"]).stdout)
    assert [row["name"] for row in result["rows"]] == ["student", "teacher", *ROWS]


def test_a_search_is_of_one_seed_and_says_so(dgpo) -> None:
    ended = dgpo("reproduce", "--search", "--seeds", "2", "--dry-run")
    assert ended.errors == ["error: --search tries the grid on one seed, so --seeds has no effect"]
    assert dgpo("reproduce", "--search", "--first-seed", "4", "--dry-run").status == 0


def test_every_row_of_the_recipe_is_one_that_its_command_takes():
    """Settings, method and options of every shipped row are parsed as the commands would."""
    specs = row_specs(recipe("tiny"))
    assert {"ppo", "gkd", "seqkd", "kd", "distillm", "taid", "dgpo", "dgpo-k1", "opd", "grpo"} <= set(specs)
    for spec in specs.values():
        where = {"student": "s", "teacher": "t", "index": "i"}
        if spec.command == "kd":
            settings = apply_options(KDSettings, spec.settings | where | {"trajectories": "d"})
        else:
            settings = apply_options(RLSettings, spec.settings | where | {"questions": "q"})
        registry.create(settings.method, settings.objective)


def test_teachers_differ_in_their_faults_alone(small):
    made = {name: recipe("tiny", name) for name in ("weak", "fair", "strong")}
    assert [sum(settings["faults"].values()) for settings in made.values()] == [4.5, 2.25, 0]
    assert len({json.dumps({k: v for k, v in s.items() if k != "faults"}) for s in made.values()}) == 1


def test_wrong_rows_and_scales_are_refused(small):
    with pytest.raises(ConfigError, match="no row is called dpgo"):
        choose(row_specs(small), ["dpgo"])
    with pytest.raises(ConfigError, match="--scale huge"):
        recipe("huge")
    with pytest.raises(ConfigError, match="no teacher is called perfect"):
        recipe("tiny", "perfect")
    broken = copy.deepcopy(small)
    broken["rows"]["kd"]["start"] = "dgpo"
    with pytest.raises(ConfigError, match="start from rows that do not exist"):
        row_specs(broken)
