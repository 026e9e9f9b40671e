"""An option that would change nothing is refused, with the option's name and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import write_one_trajectory

Dgpo = Callable[..., Any]
MODELS = "--student {student} --teacher {teacher} --device cpu --dry-run "
RL = "rl --index {index} --data {train} --steps 1 --batch-size 4 " + MODELS
KD = "kd --data {trajectories} " + MODELS
DISTILL = "distill-data --index {index} --device cpu --dry-run "
LOADED = DISTILL + "--teacher {teacher} --data {train} "
GOLD = DISTILL + "--teacher gold --tokenizer {student} --data {train} "
WRITTEN = DISTILL + "--demonstrations {written} --tokenizer {student} "
EVAL = "eval --model {student} --bench tinyworld --bench-dir {world} --device cpu --dry-run "
GRPO, SEQKD = RL + "--method grpo ", KD + "--method seqkd "
IDLE = {
    "bench dir of files": (LOADED + "--bench-dir {world}", "has no effect: {train} names files"),
    "bench dir of files in rl": (GRPO + "--bench-dir {world}", "has no effect: {train} names files"),
    "bench dir of demonstrations": (WRITTEN + "--bench-dir {world}", "bench_dir has no effect"),
    "data of demonstrations": (WRITTEN + "--data {train}", "questions has no effect"),
    "temperature of a script": (GOLD + "--temperature 0.5", "rollout.temperature has no effect"),
    "server of a loaded teacher": (LOADED + "-o server.timeout_s=5", "server.timeout_s has no effect"),
    "epochs beside steps": (SEQKD + "--steps 1 --epochs 2", "epochs has no effect: steps = 1"),
    "8 bit of no teacher": (GRPO + "--teacher-8bit", "teacher_8bit has no effect"),
    "8 bit of no reader": (SEQKD + "--teacher-8bit", "teacher_8bit has no effect"),
    "critic": (GRPO + "-o critic_lr=0.1", "critic_lr has no effect: method grpo has no critic"),
    "rollback": (GRPO + "-o collapse.lr_factor=0.1", "collapse.lr_factor has no effect"),
    "index": (SEQKD + "--index {index}", "index has no effect: method seqkd searches nothing"),
    "rollout": (SEQKD + "-o rollout.top_k=2", "rollout.top_k has no effect"),
    "eval limit": (SEQKD + "-o eval_limit=2", "eval_limit has no effect"),
    "validation share": (
        SEQKD + "--index {index} --eval-data {train} -o validation_share=0.1", "validation_share has no effect"
    ),
    "index of a set that is not asked": (EVAL + "--index {index},hotpotqa={index}", "an index for hotpotqa"),
    "two indexes of a set": (EVAL + "--index tinyworld={index},tinyworld={index}", "two indexes for tinyworld"),
    "resume and out": (GRPO.replace("--dry-run", "") + "--resume r --out s", "--resume r beside --out"),
    "resume and fresh": (GRPO.replace("--dry-run", "") + "--resume r --fresh", "--resume r beside --fresh"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(offline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("idle")
    written = folder / "written.jsonl"
    steps = '[{"think": "x", "search": "y"}, {"think": "z", "answer": "A"}]'
    written.write_text(f'{{"id": "a", "question": "Who?", "golden_answers": ["A"], "steps": {steps}}}\n')
    return {
        "index": offline.index, "teacher": offline.teacher, "student": offline.student, "written": written,
        "train": offline.questions("train"), "world": offline.folder / "world",
        "trajectories": write_one_trajectory(offline, folder / "t.jsonl"),
    }  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_an_idle_option_is_named(dgpo: Dgpo, folder: Path, places: dict[str, Path], name: str) -> None:
    argv, says = IDLE[name]
    ended = dgpo(*argv.format(**places).split())
    assert ended.status == 1 and len(ended.errors) == 1, ended.err
    assert says.format(**places) in " ".join(ended.err.split())
    assert not (folder / "runs").exists()


ASK = EVAL + "--index {index} "
CHAT = "chat --model {student} --index {index} "
TWICE = {
    "a model": (GRPO + "-o student={teacher}", "--student {student}", "student={teacher}"),
    "a number": (SEQKD + "--lr 0.1 -o lr=0.2", "--lr 0.1", "lr=0.2"),
    "by another name": (GRPO + "-o questions={trajectories}", "--data {train}", "questions={trajectories}"),
    "by an earlier name": (SEQKD + "--eval-data {train} -o eval_questions=x", "--eval-data {train}", "eval_data=x"),
    "of the method": (RL + "--kl-coef 0.1 -o objective.kl_coef=0.2", "--kl-coef 0.1", "objective.kl_coef=0.2"),
    "a flag": (RL + "--teacher-8bit -o teacher_8bit=false", "--teacher-8bit True", "teacher_8bit=false"),
    "of the rollout": (
        LOADED + "--temperature 1 -o rollout.temperature=0.5", "--temperature 1.0", "rollout.temperature=0.5"
    ),
    "the same kind of teacher": (GOLD + "-o teacher={teacher}", "--teacher gold", "teacher={teacher}"),
    "of eval": (ASK + "-k 2 -o rollout.top_k=3", "--top-k 2", "rollout.top_k=3"),
    "of chat": (CHAT + "--max-searches 2 -o rollout.max_turns=3", "--max-searches 2", "rollout.max_turns=3"),
    "of make-questions": ("make-questions {index} --no-model --test 0.2 -o test=0.3", "--test 0.2", "test=0.3"),
    "an encoder": ("index {train} --retriever dense --encoder a/b -o encoder=c/d", "--encoder a/b", "encoder=c/d"),
    "of hybrid": (
        "index {train} --retriever hybrid --encoder a/b -o dense.encoder=c/d", "--encoder a/b", "dense.encoder=c/d"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_a_setting_with_two_values_is_one_line(dgpo: Dgpo, folder: Path, places: dict[str, Path], name: str) -> None:
    argv, flag, option = TWICE[name]
    ended = dgpo(*argv.format(**places).split())
    assert ended.status == 1 and ended.errors == [
        f"error: {flag} and -o {option} are two values of one".format(**places)
    ]
    assert not (folder / "runs").exists() and not (folder / "indexes").exists()


@pytest.mark.parametrize(
    "argv",
    [
        SEQKD + "--lr 1e-4 -o lr=0.0001",
        GRPO + "-o student={student}",
        ASK + "-k 2 -o rollout.top_k=2",
        SEQKD + "--lr 0.1 --config r.toml",
    ],
)
def test_a_setting_given_twice_alike_or_over_a_recipe_is_taken(
    dgpo: Dgpo, folder: Path, places: dict[str, Path], argv: str
) -> None:
    (folder / "r.toml").write_text("[kd]\nlr = 0.2\n")
    ended = dgpo(*argv.format(**places).split())
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("argv", [GRPO, SEQKD, RL + "--method ppo "])
def test_a_method_that_reads_no_teacher_names_none(
    dgpo: Dgpo, folder: Path, places: dict[str, Path], argv: str
) -> None:
    ended = dgpo(*argv.replace("--teacher {teacher}", "").format(**places).split(), "--json")
    assert ended.status == 0 and "teacher" not in ended.err, ended.err
    assert json.loads(ended.out)["teacher"] is None
    reading = argv.replace("--method grpo", "").replace("--method seqkd", "").replace("--method ppo", "")
    ended = dgpo(*reading.replace("--teacher {teacher}", "").format(**places).split())
    assert "teacher: qwen-3b (default)" in ended.err, "a method that does says whose it is"


@pytest.mark.parametrize("argv", [GRPO, SEQKD, RL + "--method ppo --teacher {teacher} "])
def test_a_teacher_that_is_not_read_is_left_out_of_the_record(
    dgpo: Dgpo, folder: Path, places: dict[str, Path], argv: str
) -> None:
    ended = dgpo(*argv.format(**places).split(), "--json")
    assert ended.status == 0 and json.loads(ended.out)["teacher"] is None
    assert "reads no teacher" in ended.err and "is left out" in ended.err, ended.err


@pytest.mark.parametrize("argv", [LOADED, GOLD, WRITTEN, GRPO, SEQKD, EVAL + "--index {index}"])
def test_without_it_the_command_goes_on(dgpo: Dgpo, folder: Path, places: dict[str, Path], argv: str) -> None:
    ended = dgpo(*argv.format(**places).split())
    assert ended.status == 0, ended.err


def test_a_recipe_may_hold_what_another_method_reads(dgpo: Dgpo, folder: Path, places: dict[str, Path]) -> None:
    (folder / "r.toml").write_text("[rl]\nteacher_8bit = true\ncritic_lr = 0.1\n")
    ended = dgpo(*f"{GRPO} --config r.toml".format(**places).split())
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("flag", [("--teacher", "gold"), ("--demonstrations", "d.jsonl"), ("--teacher", "qwen-3b")])
def test_a_teacher_beside_one_of_another_sort_is_refused(
    dgpo: Dgpo, places: dict[str, Path], flag: tuple[str, str]
) -> None:
    argv = f"{DISTILL} --tokenizer {{student}} --data {{train}} -o teacher_url=http://127.0.0.1:9/v1".format(**places)
    ended = dgpo(*argv.split(), *flag)
    assert ended.status == 1 and "teacher_url = http://127.0.0.1:9/v1" in " ".join(ended.err.split()), ended.err


def test_other_questions_in_the_folder_of_sets_begin_another_run(
    dgpo: Dgpo, places: dict[str, Path], folder: Path
) -> None:
    for name, text in (("one", "Who built it?"), ("two", "Who found it?")):
        (folder / name).mkdir()
        row = f'{{"id": "a", "question": "{text}", "golden_answers": ["A"]}}\n'
        (folder / name / "train_hotpotqa.jsonl").write_text(row)
    argv = (DISTILL.replace("--dry-run", "--teacher {teacher} --data hotpotqa -o rollout.max_tokens=120")).format(
        **places
    )
    made = [dgpo(*argv.split(), "--bench-dir", name, "--keep", "all", "--out", "d") for name in ("one", "two")]
    assert made[0].status == 0, made[0].err
    assert made[1].status == 1 and "holds a finished run" in made[1].err
    (folder / "d" / "run.json").write_text((folder / "d" / "run.json").read_text().replace('"finished"', '"running"'))
    again = dgpo(*argv.split(), "--bench-dir", "two", "--keep", "all", "--out", "d")
    assert again.status == 1 and "other contents" in " ".join(again.err.split()), again.err
    assert dgpo("distill-data", "--config", "d/config.toml", "--dry-run").status == 0


@pytest.mark.parametrize("device", ["banana5", "nan", "dir", "0", "cuda:x", "meta", "cuda:99999", "CPU", "c", "cpu:-1"])
def test_a_text_that_names_no_device_is_refused_where_nothing_computes_on_one(
    dgpo: Dgpo, places: dict[str, Path], device: str
) -> None:
    ended = dgpo("search", "who", "--index", str(places["index"]), "--device", device)
    assert ended.status == 1 and ended.errors == [f"error: device {device!r} is none"]


CHECKED_PLACES = {
    "a file": ("--out taken", "Not a directory: "),
    "below a file": ("--out taken/run", "Not a directory: "),
    "another's folder": ("--out other", "other exists and is no run folder"),
    "no run": ("--resume other", "other is not a run folder"),
    "over": ("--out done", "done holds a finished run"),
    "both": ("--out new --resume other", "--resume other beside --out"),
}


@pytest.mark.parametrize("place", CHECKED_PLACES)
@pytest.mark.parametrize(
    "command", [GRPO, SEQKD, LOADED, EVAL + "--index {index}", "make-questions {index} --no-model"]
)
def test_a_dry_run_refuses_the_places_that_the_run_would(
    dgpo: Dgpo, folder: Path, places: dict[str, Path], command: str, place: str
) -> None:
    (folder / "taken").write_text("mine")
    (folder / "other").mkdir()
    (folder / "other" / "mine").write_text("")
    (folder / "done").mkdir()
    record = '{"command": "rl", "status": "finished", "digest": "d", "created": "2026-01-01T00:00:00+00:00"}'
    (folder / "done" / "run.json").write_text(record)
    argv, says = CHECKED_PLACES[place]
    for dry in (command + " --dry-run", command.replace("--dry-run", "")):
        ended = dgpo(*f"{dry} {argv}".format(**places).split())
        assert ended.status == 1 and len(ended.errors) == 1, ended.err
        assert says in ended.errors[0]
    assert (folder / "taken").read_text() == "mine" and not (folder / "new").exists()


@pytest.mark.parametrize("command", ["quickstart", "learn docs", "reproduce", "reproduce --results taken"])
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_dry_run_of_a_whole_path_refuses_a_file_as_its_folder(
    dgpo: Dgpo, folder: Path, command: str, out: str
) -> None:
    (folder / "docs").mkdir()
    (folder / "taken").write_text("mine")
    ended = dgpo(*command.split(), "--dry-run", "--out", out if "results" not in command else "free")
    assert ended.status == 1 and len(ended.errors) == 1 and "Not a directory" in ended.errors[0], ended.err


@pytest.mark.parametrize("model", ["--student", "--teacher"])
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_learn_knows_its_models_before_it_reads_documents(dgpo: Dgpo, folder: Path, model: str, dry: list[str]) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("Oslo is the capital of Norway.")
    ended = dgpo("learn", "docs", model, "nobodys", *dry)
    assert ended.status == 1 and ended.errors == ["error: unknown model 'nobodys'"]
    assert not (folder / "agent").exists()


@pytest.mark.parametrize("value", ["1e308", "1e19"])
def test_a_number_beyond_what_libraries_hold_is_refused(
    dgpo: Dgpo, folder: Path, places: dict[str, Path], value: str
) -> None:
    for name in ("fit_gib", "lr"):
        ended = dgpo(*f"{SEQKD} -o {name}={value}".format(**places).split())
        assert ended.status == 1 and ended.errors == [f"error: {name} = {float(value):g} is too large"], ended.err


def test_settings_are_refused_before_documents_are_indexed(dgpo: Dgpo, folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("Oslo is the capital of Norway. Edda Vik was born in Oslo.")
    for wrong in ("--passages=0", "--validation=-1", "--teacher=gone", "--out=docs"):
        author = () if "teacher" in wrong else ("--no-model",)
        ended = dgpo("make-questions", "docs", wrong, *author)
        assert ended.status == 1 and len(ended.errors) == 1, ended.err
        assert not (folder / "indexes").exists()
    ended = dgpo("make-questions", "docs", "--no-model", "--dry-run")
    assert ended.status == 0 and not (folder / "indexes").exists()
    assert dgpo("make-questions", "gone", "--no-model", "--dry-run").errors == [
        "error: gone: No such file or directory"
    ]


def test_blanks_behind_an_option_are_no_value(dgpo: Dgpo, folder: Path) -> None:
    ended = dgpo("index", "c.jsonl", "--out=  ")
    assert ended.status == 1 and ended.errors == ["error: an empty text was given to --out"]


def test_a_run_folder_whose_number_is_no_decimal_is_passed_over(dgpo: Dgpo, folder: Path) -> None:
    from dgpo_cli.core.run_dir import RunDir

    (folder / "runs" / "kd-²").mkdir(parents=True)
    with RunDir.open("kd", {}) as run:
        assert run.path.name == "kd-0001"
