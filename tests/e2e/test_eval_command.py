"""`dgpo eval` from the command line on a model, an index and question files made here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dgpo_cli.commands.evaluate.command import evaluate
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import ConfigError, InputError, ModelError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.load import save_model
from dgpo_cli.qa_sets import SEVEN, load
from dgpo_cli.retrieval.index.build import build_index
from tiny import bpe_tokenizer, qwen

app = typer.Typer()
app.command()(evaluate)

PROTOCOL = Protocol("tiny", "{question}\n<search> who</search>", "no action\n", chat_template=False)
COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, an index of ten passages, and a question file for each of the seven sets."""
    root = tmp_path_factory.mktemp("made")
    tokenizer = bpe_tokenizer()
    save_model(root / "model", qwen(len(tokenizer), positions=160), tokenizer, PROTOCOL)
    corpus = [{"id": str(i), "title": f"Tower {i}", "text": f"Built by mason {i}. " * 30} for i in range(10)]
    write_jsonl_atomic(root / "corpus.jsonl", corpus)
    build_index(root / "corpus.jsonl", root / "index")
    for name in SEVEN:
        rows = [
            {"id": f"{name}{i}", "question": f"Who built tower {i} of {name}?", "golden_answers": [f"mason {i}"]}
            | ({"hops": 1 + i % 2} if name == "musique" else {})
            for i in range(COUNT)
        ]
        write_jsonl_atomic(root / "questions" / f"{name}.jsonl", rows)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(made, *more):
    given = ["--model", str(made / "model"), "--index", str(made / "index"), "--bench-dir", str(made / "questions")]
    return [*given, "--device", "cpu", "--batch-size", "5", *more]


def run(*args):
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def without_paths(report):
    return {key: value for key, value in report.items() if key != "run"}


def test_all_seven_sets(made, here):
    report = json.loads(run(*arguments(made, "--limit", "3", "--max-searches", "1", "--json")).stdout)
    assert list(report["benchmarks"]) == list(SEVEN)
    assert all(one["n"] == 3 for one in report["benchmarks"].values())
    assert report["avg"]["em"] == sum(one["em"] for one in report["benchmarks"].values()) / 7
    assert {hops: one["n"] for hops, one in report["benchmarks"]["musique"]["hops"].items()} == {"1": 2, "2": 1}
    assert report["decoding"] == {"temperature": 0.0, "seed": 0, "samples": 1}
    corpus = report["benchmarks"]["nq"]["index"]
    assert corpus["passages"] == 10 and len(corpus["corpus_digest"]) == 64
    folder = here / "runs" / "eval-0001"
    assert json.loads((folder / "report.json").read_text()) == report
    for name in SEVEN:
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        header = json.loads(lines[0])
        assert len(lines) == 4 and header["settings"]["max_turns"] == 1
        assert {"seed", "temperature", "samples", "top_k", "max_turns"} <= header["settings"].keys()
        assert header["index"]["corpus_digest"] == corpus["corpus_digest"]
        assert header["model"] == report["model"] and len(header["model"]["weights"]) == 16
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_what_a_small_context_cuts_is_counted(made, here):
    """The model writes nothing sensible, so its searches are forced by a prompt that it only has to close."""
    result = run(*arguments(made, "--bench", "nq", "--limit", "4", "--temperature", "1", "--json"))
    report = json.loads(result.stdout)
    assert report["rollout"]["capacity"] == 160 and report["rollout"]["max_observation_tokens"] == 40
    assert "max_observation_tokens: 40 (a quarter of" in result.stderr
    assert "was never trained to search" not in result.stderr
    for line in (here / "runs" / "eval-0001" / "nq.jsonl").read_text().splitlines()[1:]:
        row = json.loads(line)
        assert len(row["token_ids"]) <= 160
        assert row["truncated_observations"] <= len(row["searches"])


def test_defaults_come_from_the_workspace_and_are_told(made, here):
    Workspace().remember(by="dgpo rl", model=made / "model")
    Workspace().remember(by="dgpo index", index=made / "index")
    result = run("--bench-dir", str(made / "questions"), "--bench", "nq,popqa", "--limit", "1", "--device", "cpu")
    assert f"model: {made / 'model'} (remembered from `dgpo rl`" in result.stderr
    assert f"index: {made / 'index'} (remembered from `dgpo index`" in result.stderr
    assert "average" in result.stdout and "greedy decoding" in result.stdout


def test_the_same_command_again_starts_a_run_of_its_own_only_after_the_first_has_finished(made, here):
    args = arguments(made, "--bench", "nq", "--json")
    first = json.loads(run(*args).stdout)
    folder = here / "runs" / "eval-0001"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    lines = (folder / "nq.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "nq.jsonl").write_bytes(b"".join(lines[:8]) + lines[8][:20])
    result = run(*args)
    assert f"going on with {Path('runs') / 'eval-0001'}: 7 of {COUNT} answered" in result.stderr
    assert json.loads(result.stdout) == first
    assert json.loads(run(*args).stdout)["run"].endswith("eval-0002")


def test_killed_in_the_middle_and_started_again(made, here):
    args = arguments(made, "--bench", "nq,triviaqa,popqa", "--temperature", "1", "--batch-size", "2", "--json")
    whole = json.loads(run(*args, "--out", str(here / "whole")).stdout)
    code = "import typer; from dgpo_cli.commands.evaluate.command import evaluate; typer.run(evaluate)"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args, "--out", str(here / "killed")],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )
    middle, deadline = here / "killed" / "triviaqa.jsonl", time.monotonic() + 120
    while not middle.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert middle.is_file() and json.loads((here / "killed" / "run.json").read_text())["status"] != "finished"
    resumed = run(*args, "--out", str(here / "killed"))
    assert "going on with" in resumed.stderr
    assert without_paths(json.loads(resumed.stdout)) == without_paths(whole)
    for name in ("nq", "triviaqa", "popqa"):
        tokens = [
            [json.loads(line)["token_ids"] for line in (here / folder / f"{name}.jsonl").read_text().splitlines()[1:]]
            for folder in ("whole", "killed")
        ]
        assert len(tokens[0]) == COUNT and tokens[0] == tokens[1]


def test_other_weights_do_not_go_on_with_a_run(made, here, tmp_path):
    args = arguments(made, "--bench", "nq", "--limit", "2", "--out", str(tmp_path / "out"))
    run(*args)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    tokenizer = bpe_tokenizer()
    save_model(tmp_path / "model", qwen(len(tokenizer), seed=1, positions=160), tokenizer, PROTOCOL)
    with pytest.raises(ConfigError, match="other settings"):
        run(*args, "--model", str(tmp_path / "model"))


def test_a_dry_run_shows_the_settings_and_writes_nothing(made, here):
    result = json.loads(run(*arguments(made, "--bench", "bamboogle", "--dry-run", "--json")).stdout)
    assert result["num_questions"] == {"bamboogle": COUNT} and result["temperature"] == 0.0
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--bench", "nqq"], ConfigError, "unknown QA set 'nqq'"),
        (["--bench", ","], ConfigError, "no benchmark"),
        (["--bench", "tinyworld"], InputError, "questions of tinyworld"),
        (["--bench", "nq,popqa", "--index", "nq=x"], ConfigError, "no index for popqa"),
        (["--bench", "nq", "--index", "a,b"], ConfigError, "two indexes"),
        (["--limit", "0"], ConfigError, "leaves no question"),
        (["--temperature", "-1"], ConfigError, "negative"),
        (["--samples", "4"], ConfigError, "one answer 4 times"),
        (["--samples", "0", "--temperature", "1"], ConfigError, "leaves no answer"),
        (["--model", "qwen-05b", "--bench", "nq"], ModelError, "unknown model"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(made, here, more, error, message):
    with pytest.raises(error, match=message) as caught:
        run(*arguments(made, *more))
    assert caught.value.hint and "\n" not in caught.value.message
    assert not (here / "runs").exists()


def test_a_run_of_dgpo_rl_is_shown_beside_the_papers_row(made, here):
    tokenizer = bpe_tokenizer()
    save_model(here / "runs" / "rl-0001" / "best", qwen(len(tokenizer), positions=160), tokenizer, PROTOCOL)
    (here / "runs" / "rl-0001" / "config.toml").write_text('method = "dgpo"\n')
    args = arguments(made, "--model", "rl-0001", "--bench", "nq,hotpotqa", "--limit", "2")
    report = json.loads(run(*args, "--json").stdout)
    published = report["benchmarks"]["nq"]["published"]
    assert (published["row"], published["em"], published["comparable"]) == ("DGPO 0.5B", 0.378, False)
    assert "2 of 3,610 questions" in published["reasons"]
    assert report["avg"]["published"]["em"] == pytest.approx((0.378 + 0.342) / 2)
    assert "37.8 % *" in run(*args).stdout


def tokens(file):
    """By question and sample: records come in the order in which episodes end."""
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return [tuple(row["token_ids"]) for row in sorted(rows, key=lambda row: row["key"])]


def test_several_samples_differ_and_go_on_after_a_kill(made, here):
    args = arguments(made, "--bench", "nq", "--samples", "3", "--temperature", "1", "--json")
    report = json.loads(run(*args, "--out", str(here / "whole")).stdout)
    one = report["benchmarks"]["nq"]
    assert (one["n"], one["draws"], list(one["pass_at"])) == (COUNT, 3 * COUNT, ["1", "2", "3"])
    drawn = tokens(here / "whole" / "nq.jsonl")
    assert all(len(set(drawn[start : start + 3])) == 3 for start in range(0, len(drawn), 3))
    lines = (here / "whole" / "nq.jsonl").read_bytes().splitlines(keepends=True)
    record = json.loads((here / "whole" / "run.json").read_text())
    (here / "whole" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    (here / "whole" / "nq.jsonl").write_bytes(b"".join(lines[:19]))  # in the middle of a wave
    result = run(*args, "--out", str(here / "whole"))
    assert f"18 of {3 * COUNT} answered" in result.stderr
    assert json.loads(result.stdout) == report and tokens(here / "whole" / "nq.jsonl") == drawn


def test_two_runs_are_compared_and_what_differs_is_said_first(made, here):
    for seed in ("0", "1"):
        more = ["--top-k", "2"] if seed == "1" else []
        run(*arguments(made, "--bench", "nq,popqa", "--temperature", "1", "--seed", seed, "--limit", "8", *more))
    shown = run("--compare", "eval-0001", "runs/eval-0002").stdout
    assert shown.index("NOT COMPARABLE") < shown.index("seed: 0 in A, 1 in B") < shown.index("Paired comparison")
    result = json.loads(run("--compare", "eval-0001", "eval-0002", "--json").stdout)
    assert [one["setting"] for one in result["settings"]] == ["seed", "top_k"]
    assert result["benchmarks"]["popqa"]["n"] == 8 and not result["comparable"]
    same = json.loads(run("--compare", "eval-0001", "eval-0001", "--json").stdout)
    assert same["comparable"] and same["avg"]["difference"] == 0.0
    assert same["avg"]["interval"]["low"] < 0 < same["avg"]["interval"]["high"], "eight questions prove no equality"
    with pytest.raises(ConfigError, match="--top-k has no effect"):
        run("--compare", "eval-0001", "eval-0002", "-k", "2")


def test_the_precision_is_chosen_recorded_and_compared(made, here, monkeypatch):
    """An evaluation in bf16 neither goes on in float32 nor passes for one."""
    import torch

    from dgpo_cli.models import devices

    ask = ("--bench", "nq", "--limit", "2")
    run(*arguments(made, *ask, "-o", "precision=float32"))
    asked = []

    def as_half(device, model=None, precision="auto"):
        asked.append(precision)
        return torch.bfloat16

    monkeypatch.setattr(devices, "inference_dtype", as_half)
    run(*arguments(made, *ask, "-o", "precision=float32"))
    assert asked == ["float32"]
    headers = [
        json.loads((here / "runs" / n / "nq.jsonl").read_text().splitlines()[0]) for n in ("eval-0001", "eval-0002")
    ]
    assert [header["settings"]["computed_in"] for header in headers] == ["float32", "bfloat16"]
    result = json.loads(run("--compare", "eval-0001", "eval-0002", "--json").stdout)
    assert [one["setting"] for one in result["settings"]] == ["computed_in"] and not result["comparable"]
    assert json.loads((here / "runs/eval-0002/report.json").read_text())["rollout"]["computed_in"] == "bfloat16"


def test_arcap_of_a_set_with_gold_passages(made, here):
    rows = [
        {"id": str(i), "question": f"Who built tower {i}?", "golden_answers": [f"mason {i}"]}
        | ({"supporting_ids": [str(i)]} if i < 6 else {"supporting_titles": ["Nowhere"]} if i < 8 else {})
        for i in range(10)
    ]
    write_jsonl_atomic(here / "questions" / "musique.jsonl", rows)
    model = here / "runs" / "rl-0001" / "best"
    tokenizer = bpe_tokenizer()
    save_model(model, qwen(len(tokenizer), positions=160), tokenizer, PROTOCOL)
    (here / "runs" / "rl-0001" / "config.toml").write_text('method = "dgpo"\n')
    args = ["--model", "rl-0001", "--index", str(made / "index"), "--bench-dir", str(here / "questions"), "--arcap"]
    args += ["--bench", "musique", "--device", "cpu", "--batch-size", "4"]
    plan = json.loads(run(*args, "--dry-run", "--json").stdout)
    assert plan["gold"]["musique"] == {"questions": 6, "without_gold": 2, "incomplete": 2, "missing_passages": 1}
    result = run(*args)
    for expected in ("ARCap", "2.64 *", "2 questions without known gold passages", "neither its gold contexts"):
        assert expected in result.stdout
    arcap = json.loads((here / "runs" / "eval-0001" / "report.json").read_text())["benchmarks"]["musique"]["arcap"]
    assert arcap["gold"]["direct"]["n"] == arcap["gold"]["think"]["n"] == 6
    assert arcap["published"]["steps"] == 2.64 and not arcap["published"]["comparable"]
    assert len(tokens(here / "runs" / "eval-0001" / "gold" / "musique-direct.jsonl")) == 6


@pytest.fixture
def own(here):
    """A file of two questions of one's own; further ones by name."""

    def write(name):
        rows = [{"question": f"who built tower {n}?", "golden_answers": ["ada"]} for n in range(2)]
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def on_own(made, bench, *more):
    return ["--model", str(made / "model"), "--index", str(made / "index"), "--device", "cpu", "--bench", bench, *more]


def test_question_files_of_ones_own(made, here, own):
    """Each is called as its file, and the next call knows it: from its whole path, wherever it is called."""
    report = json.loads(run(*on_own(made, own("my questions.jsonl"), "--json")).stdout)
    assert {name: one["n"] for name, one in report["benchmarks"].items()} == {"my-questions": 2}
    assert (here / "runs" / "eval-0001" / "my-questions.jsonl").is_file()
    again = run("--model", str(made / "model"), "--index", str(made / "index"), "--device", "cpu")
    assert "my questions.jsonl (remembered)" in again.stderr
    both = on_own(made, f"{own('a.jsonl')},nq", "--bench-dir", str(made / "questions"), "--limit", "1", "--json")
    both[3] = f"a={made / 'index'},nq={made / 'index'}"
    assert list(json.loads(run(*both).stdout)["benchmarks"]) == ["a", "nq"]


def test_a_set_of_the_hub_is_called_as_its_repository(made, here, monkeypatch):
    monkeypatch.setattr(load, "hub_questions", lambda _: [("row 1", {"question": "who?", "golden_answers": ["ada"]})])
    report = json.loads(run(*on_own(made, "hf:me/faq:train", "--json")).stdout)
    assert list(report["benchmarks"]) == ["faq"]


@pytest.mark.parametrize(
    ("bench", "more", "message"),
    [
        ("none.jsonl", (), "none.jsonl"),
        ("x/a.jsonl,a.jsonl", (), "two question sets are called a"),
        ("a.jsonl", ("--bench-dir", "x"), "has no effect"),
    ],
)
def test_files_that_cannot_be_asked(made, here, own, bench, more, message):
    own("a.jsonl"), own("x/a.jsonl")
    result = CliRunner().invoke(app, on_own(made, bench, *more))
    assert result.exit_code != 0 and message in f"{result.exception}"
    assert not (here / "runs").exists()
