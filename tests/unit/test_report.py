"""The page of `dgpo report`: what it says of runs made by hand, and that nothing read can become part of the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report_runs import ATTACK, episode, make
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import keep_tokenizer
from dgpo_cli.viewing import report
from dgpo_cli.viewing.charts import MOST, curves, running_mean
from dgpo_cli.viewing.report_page import embed


class Page(HTMLParser):
    """Elements as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    @property
    def content(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    target = tmp_path_factory.mktemp("page") / "r.html"
    report.write_report(runs, target, questions=100)
    return Page(target.read_text(encoding="utf-8"))


def test_the_page_tells_the_risk_among_the_surest_answers(page: Page) -> None:
    """Three right and then two wrong; of the second run's answers no probability is known."""
    found = page.content["selective"]
    assert found["columns"][:6] == ["run", "question set", "AURC", "100 %", "90 %", "80 %"]
    shares = ["13.0 %", "40.0 %", "40.0 %", "25.0 %", "25.0 %", *["0.0 %"] * 6]
    assert found["rows"] == [[0, "hand", *shares]]


def test_the_page_holds_two_scripts_and_no_image_whatever_was_read(page: Page) -> None:
    names = [name for name, _ in page.tags]
    assert names.count("script") == 2
    assert not {"img", "iframe", "link", "object", "embed", "base", "form"} & set(names)
    assert not [value for _, attributes in page.tags for name, value in attributes.items() if name.startswith("on")]
    assert any(ATTACK in question["text"] for question in page.content["questions"])


def test_the_policy_allows_the_pages_own_script_and_no_request(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not {"connect-src", "img-src", "font-src"} & rules.keys()
    places = [v for _, a in page.tags for n, v in a.items() if n in ("src", "href", "xlink:href") and v]
    assert all(place.startswith("#") for place in places)


def test_the_script_never_makes_markup_of_data(page: Page) -> None:
    forbidden = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "fetch(")
    assert [word for word in forbidden if word in page.scripts[1]] == []


def test_embedded_json_cannot_end_its_element() -> None:
    text = embed({"a": "</script><!-- <script>", "b": "\u2028 é"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!-- <script>", "b": "\u2028 é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(float("nan"))


def test_an_episode_reads_as_it_was_written_step_by_step(page: Page) -> None:
    question = next(q for q in page.content["questions"] if q["key"] == "hand/q1/0")
    attempt = question["attempts"]["1"]
    assert [(step["kind"], step["search"]) for step in attempt["steps"]] == [
        ("prompt", None),
        ("search", 0),
        ("result", None),
        ("think", None),
        ("correction", None),
        ("answer", None),
    ]
    assert attempt["steps"][1]["text"] == "<think>hm</think><search>where is it</search>"
    assert attempt["steps"][3]["text"] == "no idea é"
    assert ATTACK in attempt["steps"][2]["text"]
    assert attempt["written"] == sum(
        s["tokens"] for s in attempt["steps"] if s["kind"] in ("search", "think", "answer")
    )
    assert attempt["searches"][0]["hits"] == [
        {"id": "p1", "title": f"Lyon {ATTACK}", "score": 1.25, "gold": True, "answer": True}
    ]
    assert (attempt["correct"], attempt["reward"], attempt["parts"]) == (False, 0.0, {"em": 0.0})


def test_tables_and_pairs_have_the_numbers_of_the_records(page: Page) -> None:
    content = page.content
    rows = {(row[0], row[2]): row for row in content["evaluations"]["rows"]}
    assert rows[0, "all"][3:5] == ["6", "50.0 %"]
    assert rows[1, "all"][3:5] == ["6", "33.3 %"]
    assert rows[0, "1"][3:5] == ["3", "66.7 %"]  # questions 0, 2 of 0, 2, 4
    # Only the first has 1 and 2 right, only the second 3; a split of 2 to 1 of three has p = 1.
    pair = content["pairs"]["rows"]
    assert [row[:6] for row in pair] == [["first", "second", "6", "2", "1", "-16.7"]]
    assert pair[0][7] == "1.000"
    train = content["summary"]["rows"][2]
    assert train[:2] == ["rl", "dgpo"]
    assert train[5:] == ["30", "50.0 %", "60 s"]


def test_evaluations_with_other_settings_are_called_not_comparable(page: Page) -> None:
    assert page.content["warnings"] == [
        "Not comparable as they stand: the evaluations differ in top_k (first: 3; second: 5)."
    ]


def test_a_bounded_page_shows_the_same_questions_of_every_run(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = report.write_report(runs[:2], tmp_path / "r.html", questions=2)
    content = Page((tmp_path / "r.html").read_text(encoding="utf-8")).content
    assert result.questions == 2
    assert [set(q["attempts"]) for q in content["questions"]] == [{"0", "1"}] * 2
    assert "2 are shown" in content["warnings"][-1]
    assert content["evaluations"]["rows"][0][3] == "6"  # tables count all


def test_without_the_tokenizer_the_page_says_so_and_shows_the_rest(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = report.open_run(runs[0])
    opened.name, opened.config["model"] = "first", str(tmp_path / "gone")
    content = report.gather([opened], 10)
    assert content.questions[0].attempts["0"].steps == []
    assert content.questions[0].attempts["0"].searches[0].query == "where is it"
    assert content.warnings == [
        f"first: the text of its episodes cannot be shown ({tmp_path / 'gone'} does not exist)."
    ]


def test_there_is_a_curve_for_every_logged_number(page: Page) -> None:
    specs = page.content["charts"]
    assert [spec["metric"] for spec in specs] == ["eval_em", "reward", "entropy", "odd<name>", "seconds"]
    assert [spec["main"] for spec in specs] == [True, True, True, False, False]
    evaluations, _, train = page.content["curves"]
    assert evaluations == {}
    assert train["eval_em"] == {"each": [[30], [0.5]], "mean": None}
    assert train["seconds"]["each"] == [list(range(1, 31)), [2.0 * step for step in range(1, 31)]]
    assert train["seconds"]["mean"][1][:3] == [2.0, 3.0, 5.0]  # over two steps
    assert running_mean([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]


def test_a_long_curve_is_thinned_and_keeps_its_spikes_and_its_end() -> None:
    rows = [{"step": step, "reward": float(step == 4_321) - 2.0 * (step == 77)} for step in range(1, 10_001)]
    curve = curves(rows)["reward"]
    assert curve.mean is not None
    steps, values = curve.each
    assert len(steps) <= MOST + 1 and len(curve.mean[0]) <= MOST + 1
    assert steps == sorted(steps) and (steps[-1], curve.mean[0][-1]) == (10_000, 10_000)
    assert {(77, -2.0), (4_321, 1.0)} <= set(zip(steps, values, strict=True))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        report.write_report([tmp_path], tmp_path / "r.html", questions=1)
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_the_page(runs: tuple[Path, Path, Path], dgpo, folder: Path) -> None:
    ended = dgpo("report", str(runs[0]), str(runs[2]), "--out", "page.html", "--json")
    assert ended.status == 0
    result = json.loads(ended.out)
    assert result["questions"] == 6
    assert (folder / "page.html").stat().st_size == result["bytes"]


def test_only_a_page_of_its_own_is_written_over(runs: tuple[Path, Path, Path], dgpo, folder: Path) -> None:
    earlier = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>dgpo report: a</title>\n'
    (folder / "page.html").write_text(earlier)
    for _ in range(2):
        assert dgpo("report", str(runs[0]), "--out", "page.html").status == 0
    for content in ("mine", "<!doctype html><title>mine</title>"):
        (folder / "mine.html").write_text(content)
        ended = dgpo("report", str(runs[0]), "--out", "mine.html")
        assert ended.errors == ["error: mine.html is there already, and is no page of `dgpo report`"]
        assert (folder / "mine.html").read_text() == content


def test_runs_are_named_as_everywhere_or_are_the_last_ones(dgpo, folder: Path) -> None:
    make(folder / "quickstart" / "runs")
    named = dgpo("report", "second", "quickstart/train", "--json")
    assert json.loads(named.out)["names"] == ["second", "train"], named.err
    last = json.loads(dgpo("report", "--json").out)
    assert set(last["names"]) == {"first", "second", "train"}
    for number in range(1, 9):
        with RunDir.open("rl", {"number": number}) as run:
            run.finish({})
    for place, path in enumerate(sorted((folder / "runs").iterdir())):
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"created": f"2099-01-0{place + 1}T00:00:00+00:00"}))
    said = dgpo("report")
    names = [f"rl-000{number}" for number in range(1, 9)]
    assert f"of the last runs: {', '.join(names)}" in said.err


def test_runs_that_only_made_questions_are_passed_over(dgpo, folder: Path) -> None:
    """Their `validation.jsonl` holds questions, no episodes."""
    with RunDir.open("make-questions", {"index": "i"}) as run:
        (run.path / "validation.jsonl").write_text('{"id": "1", "question": "Who?", "golden_answers": ["A"]}\n')
        run.finish({})
    assert dgpo("report").errors == ["error: no run below this folder has curves or episodes"]
    said = f"{folder}/runs/make-questions-0001 is a run of `dgpo make-questions`, which has neither curves nor episodes"
    assert dgpo("report", "runs/make-questions-0001").errors == [f"error: {said}"]
    make(folder / "quickstart" / "runs")
    assert set(json.loads(dgpo("report", "--json").out)["names"]) == {"first", "second", "train"}


def test_damaged_runs_are_left_out_of_the_last_ones_and_named(dgpo, folder: Path) -> None:
    make(folder / "runs")
    (folder / "runs" / "train" / "run.json").write_text("{")
    said = dgpo("report", "--json")
    assert set(json.loads(said.out)["names"]) == {"first", "second"}
    assert "Left out, since damaged: train (" in said.err
    for name in ("first", "second"):
        (folder / "runs" / name / "run.json").write_text("{")
    assert "error: Left out, since damaged: first, second, train" in " ".join(dgpo("report").errors)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("first/config.toml", lambda _: "method = 3\n", "`method` is 3, not a text"),
        ("first/config.toml", lambda _: "benchmarks = 3\n", "`benchmarks` is 3, not a list"),
        ("first/config.toml", lambda _: 'benchmarks = ["a", 3]\n', "`benchmarks[1]` is 3, not a text"),
        ("train/config.toml", lambda _: "objective = 3\n", "`objective` is 3, not an object"),
        ("train/metrics.jsonl", lambda text: text + '{"step": 30, "alarm": "x"}\n', "`metric` is missing"),
        (
            "train/metrics.jsonl",
            lambda text: text + '{"step": 3, "alarm": "", "metric": "", "action": "", "mean": "x", "threshold": 1}\n',
            "`mean` is 'x', not a finite number",
        ),
        ("first/hand.jsonl", lambda text: text.replace('"protocol"', '"protokoll"', 1), "`protocol` is missing"),
        ("first/hand.jsonl", lambda text: re.sub('"settings": {[^}]*}', '"settings": [3]', text), "`settings` is a"),
    ],
)  # fmt: skip
def test_a_damaged_record_of_a_run_is_one_line(
    dgpo, folder: Path, file: str, change: Callable[[str], str], told: str
) -> None:
    make(folder / "runs")
    place = folder / "runs" / file
    place.write_text(change(place.read_text()))
    ended = dgpo("report", place.parent.name)
    assert ended.status == 1 and len(ended.errors) == 1
    assert file in ended.errors[0] and told in ended.errors[0]
    assert dgpo("runs").status == 0
    assert dgpo("audit", "--run", place.parent.name, "--index", "none").errors[0].startswith("error: ")


def test_a_rollout_of_no_step_and_a_turn_that_nobody_knows(tmp_path: Path) -> None:
    first, _, train = make(tmp_path)
    header, row, *_ = (first / "hand.jsonl").read_text().splitlines()
    header = header.replace('"schema": "evaluation"', '"schema": "rollouts"')
    for step in ("Infinity", "NaN", '"a"', "1.5", "null", "-1"):
        (train / "rollouts.jsonl").write_text(f'{header}\n{row[:-1]}, "step": {step}}}\n')
        with pytest.raises(InputError, match=r"rollouts\.jsonl:2: not an episode"):
            report.open_run(train)
    opened = report.open_run(first)
    opened.name = "first"
    file, told = first / "hand.jsonl", json.loads(row)
    file.write_text(f"{header.replace('rollouts', 'evaluation')}\n{json.dumps(told | {'written_turns': []})}\n")
    (question,) = report.gather([opened], 10).questions
    assert {step.kind for step in question.attempts["0"].steps} >= {"prompt", "think"}


def test_two_evaluations_differ_only_over_the_sets_that_both_answered(tmp_path: Path) -> None:
    from dgpo_cli.viewing.run_records import RunRecords

    def run(name: str, **sets: dict[str, object]) -> RunRecords:
        headers = {s: {"settings": {"top_k": 3} | told} for s, told in sets.items()}
        return RunRecords(tmp_path, {}, {}, [], [], name, headers=headers)

    runs = [run("a", nq={}, hotpotqa={"seed": 1}), run("b", nq={}, hotpotqa={"seed": 2}), run("c", musique={"seed": 3})]
    assert report._differing(runs) == [
        "Not comparable as they stand: the evaluations of hotpotqa differ in seed (a: 1; b: 2)."
    ]


def test_a_report_without_any_run_says_how_to_make_one(dgpo) -> None:
    ended = dgpo("report")
    assert (ended.status, ended.errors) == (1, ["error: there are no runs below this folder"])


def test_a_served_teachers_episodes_are_shown_by_the_tokenizer_that_the_run_kept(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer()
    codec = Codec(tokenizer, TINYWORLD)
    config = {"teacher": "scripted", "teacher_url": "http://127.0.0.1:1/v1", "tokenizer": str(tmp_path / "gone")}
    with RunDir.open("distill-data", config, out=tmp_path / "served") as run:
        meta = {"protocol": TINYWORLD.to_json(), "tokenizer": codec.digest}
        with RecordFile(run.path / "episodes.jsonl", key="key", schema="trajectories", meta=meta) as records:
            made = episode(codec, 0, "Lyon")
            records.append({"key": made.key} | made.to_json())
        keep_tokenizer(run.path, tokenizer)
        run.finish({"em": 1.0})
    opened = report.open_run(tmp_path / "served")
    opened.name = "served"
    content = report.gather([opened], 10)
    assert content.warnings == []
    assert content.questions[0].attempts["0"].steps[1].text == "<think>hm</think><search>where is it</search>"


def test_text_is_never_shown_by_another_tokenizer_than_the_runs(runs: tuple[Path, Path, Path]) -> None:
    opened = report.open_run(runs[0])
    opened.name = "first"
    header = {"protocol": TINYWORLD.to_json(), "tokenizer": "of another one"}
    warnings: list[str] = []
    assert report._codec(opened, header, warnings) is None
    assert "its tokens are not those of" in warnings[0]
