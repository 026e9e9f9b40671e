"""Hostile text and records through the command line: one clear line, the rest answered, nothing trained on rubbish."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.offline import Offline, write_one_trajectory

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.load import save_model
from tiny import bpe_tokenizer, qwen

Dgpo = Callable[..., Any]
QUESTIONS = ("Where did Trelu study?", "Who built the tower?")


@pytest.fixture
def pipe(dgpo: Dgpo, offline: Offline, searcher: Path, monkeypatch: pytest.MonkeyPatch) -> Dgpo:
    """`dgpo chat` with these bytes as its standard input."""

    def chat(content: bytes, *options: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return dgpo("chat", "--model", str(searcher), "--index", str(offline.index), "--device", "cpu", *options)

    return chat


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf  ", b""])
def test_a_byte_order_mark_changes_no_answer(pipe: Dgpo, mark: bytes) -> None:
    content = "\n".join(QUESTIONS).encode()
    plain, marked = pipe(content, "--json"), pipe(mark + content + b"\r\n", "--json")
    answers = json.loads(marked.out)["answers"]
    assert answers == json.loads(plain.out)["answers"]
    assert [answer["question"] for answer in answers] == list(QUESTIONS)
    assert pipe(content).out == pipe(mark + content).out


@pytest.mark.parametrize(
    ("line", "problem"),
    [(b"Where is \xe6r\xf8?", "not UTF-8 (byte 0xe6 at 9"), (b"Where\0?", "holds a NUL character")],
)
def test_a_line_that_is_no_text_is_named_and_the_others_answered(pipe: Dgpo, line: bytes, problem: str) -> None:
    content = QUESTIONS[0].encode() + b"\n" + line + b"\n" + QUESTIONS[1].encode() + b"\n"
    said = pipe(content)
    assert said.out.count("\n") == 3 and said.out.split("\n")[1] == ""
    assert said.err.count("line 2 of the input") == 1 and problem in " ".join(said.err.split())
    result = pipe(content, "--json")
    told = json.loads(result.out)
    assert [answer["question"] for answer in told["answers"]] == list(QUESTIONS)
    assert [entry["line"] for entry in told["unread"]] == [2] and problem in told["unread"][0]["problem"]
    assert (said.status, result.status) == (1, 1)


ROWS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"written": "000"}], "no trajectory holds a token that a model wrote"),
    ([{"logprobs": [0.0, 0.0, float("nan")]}], "t.jsonl:2: not a trajectory (`logprobs[2]` is nan"),
    ([{}, {}], "t.jsonl:3: attempt"),
    ([{"token_ids": [5, 6, 10**6]}], "token id 1000000"),
]


@pytest.mark.parametrize(("rows", "problem"), ROWS, ids=["unwritten", "nan", "twice", "unknown token"])
@pytest.mark.parametrize("dry", [True, False])
def test_kd_does_not_train_on_rubbish(
    dgpo: Dgpo, offline: Offline, folder: Path, rows: list[dict[str, Any]], problem: str, dry: bool
) -> None:
    header, row = map(json.loads, write_one_trajectory(offline, folder / "t.jsonl").read_text().splitlines())
    (folder / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (header, *(row | r for r in rows))))
    ended = dgpo("kd", "--method", "seqkd", "--student", str(offline.student), "--teacher", str(offline.teacher),
                 "--data", "t.jsonl", "--out", "run", *(["--dry-run"] if dry else []))  # fmt: skip
    assert ended.status == 1 and len(ended.errors) == 1
    assert problem in " ".join(ended.err.split())
    assert not (folder / "run").exists(), "nothing begins before the data are checked"


TEMPLATES: dict[str, Any] = {
    "raises": "{{ raise_exception('no system message') }}",
    "syntax error": "{% for %}",
    "message twice": "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
    "endless": "{% for i in range(10**9) %}{% endfor %}{{ messages[0]['content'] }}",
    "no default": [{"name": "tool_use", "template": "{{ messages[0]['content'] }}"}],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dry_run_tells_of_a_broken_chat_template(dgpo: Dgpo, offline: Offline, folder: Path, name: str) -> None:
    tokenizer = bpe_tokenizer(chat=True)
    save_model(folder / "model", qwen(len(tokenizer), positions=2048), tokenizer, DEFAULT)
    arguments = ["rl", "--method", "ppo", "--student", "./model", "--index", str(offline.index), "--data",
                 str(offline.questions("train")), "-o", "batch_size=4", "--dry-run"]  # fmt: skip
    sound = dgpo(*arguments)
    template = TEMPLATES[name]
    if isinstance(template, str):
        (folder / "model" / "chat_template.jinja").write_text(template)
    else:
        (folder / "model" / "chat_template.jinja").unlink()
        config = json.loads((folder / "model" / "tokenizer_config.json").read_text())
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    broken = dgpo(*arguments)
    assert sound.status == 0, sound.err
    assert broken.status == 1 and len(broken.errors) == 1 and "Traceback" not in broken.err, broken.err
    assert "template" in broken.errors[0]


ODD = (None, "text", True, [], {}, [1.0], float("nan"), float("inf"), 10**30, 10**400, -0.0, "\x1b[2J", "</script>")


def test_odd_values_of_metrics_do_not_break_a_report(dgpo: Dgpo, folder: Path) -> None:
    with RunDir.open("rl", {"method": "ppo"}) as run:
        run.finish({"best": 0.5, "em": []})
    rows = [{"step": step, "reward": value, "eval_em": value, "em": value, "eval_score": value, "seconds": value}
            for step, value in enumerate((0.5, *ODD, 0.25))]  # fmt: skip
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = dgpo("report", "--out", "page.html")
    assert shown.status == 0, shown.err
    page = (folder / "page.html").read_text()
    assert "\x1b" not in page and "NaN" not in page and 'reward": "</script>' not in page
    assert dgpo("runs").status == 0


@pytest.mark.parametrize("step", [None, -1, "1", 1.5, True])
def test_a_step_that_is_none_is_named_by_its_line(dgpo: Dgpo, folder: Path, step: object) -> None:
    with RunDir.open("rl", {"method": "ppo"}) as run:
        run.finish({"best": 0.5, "em": []})
    (run.path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": step}) + "\n")
    ended = dgpo("report", str(run.path), "--out", "page.html")
    assert ended.status == 1 and len(ended.errors) == 1
    assert "metrics.jsonl:2: `step` is" in " ".join(ended.err.split())
