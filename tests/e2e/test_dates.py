"""A chat template that writes the date: one date for a whole run, recorded, and told where two runs differ."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from dgpo_cli.agent import identity
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_record import read_run
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import save_model
from dgpo_cli.retrieval.index.build import build_index
from tiny import bpe_tokenizer, qwen

TEMPLATE = "Today is {{ strftime_now('%d %m %Y') }}. {% for m in messages %}{{ m.content }}{% endfor %}"
FIRST, SECOND = "Today is 30 11 2025.", "Today is 01 12 2025."


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch):
    """Puts the clock of runs on a day."""

    def put(year: int, month: int, number: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(year, month, number, 12)

        monkeypatch.setattr(identity, "datetime", Clock)

    return put


@pytest.fixture
def made(folder: Path) -> Path:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_model(folder / "model", qwen(len(tokenizer), positions=1024), tokenizer, DEFAULT)
    corpus = [{"id": str(i), "title": f"Tower {i}", "text": f"Built by mason {i}."} for i in range(4)]
    write_jsonl_atomic(folder / "corpus.jsonl", corpus)
    build_index(folder / "corpus.jsonl", folder / "index")
    rows = [{"id": str(i), "question": f"Who built tower {i}?", "golden_answers": [f"mason {i}"]} for i in range(4)]
    write_jsonl_atomic(folder / "q" / "nq.jsonl", rows)
    return folder


def cut(run: Path, name: str, rows: int) -> None:
    """As a kill after so many rows would have left the run."""
    lines = (run / name).read_text().splitlines(keepends=True)
    (run / name).write_text("".join(lines[: 1 + rows]))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))


def openings(file: Path) -> set[str]:
    tokenizer = bpe_tokenizer()
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert len(rows) == 4
    return {tokenizer.decode(row.get("trajectory", row)["token_ids"])[: len(FIRST)] for row in rows}


SHORT = ["--max-searches", "1", "-orollout.max_new_tokens=8", "--device", "cpu"]


def test_an_evaluation_keeps_its_date_after_midnight(made: Path, day, dgpo) -> None:
    asked = ["eval", "--model", "model", "--index", "index", "--bench", "nq", "--bench-dir", "q", *SHORT]
    day(2025, 11, 30)
    assert dgpo(*asked, "--out", "a").status == 0
    cut(made / "a", "nq.jsonl", 2)
    day(2025, 12, 1)
    assert "2 of 4 answered" in dgpo(*asked, "--out", "a").err
    assert openings(made / "a" / "nq.jsonl") == {FIRST}
    assert read_run(made / "a")["date"] == "2025-11-30"

    assert dgpo(*asked, "--out", "b").status == 0
    assert openings(made / "b" / "nq.jsonl") == {SECOND}
    compared = dgpo("eval", "--compare", "a", "b", "--json")
    assert json.loads(compared.out)["settings"] == [
        {"setting": "date", "benchmarks": ["nq"], "a": "2025-11-30", "b": "2025-12-01"}
    ]


def test_distillation_keeps_its_date_and_training_takes_its_own(made: Path, day, dgpo) -> None:
    rollout = [f"-orollout.{name}" for name in ("max_turns=1", "max_new_tokens=8", "max_tokens=700")]
    common = ["--index", "index", "--device", "cpu", *rollout]
    asked = ["distill-data", "--teacher", "model", "--data", "q/nq.jsonl", "--keep", "all", *common, "--out", "d"]
    day(2025, 11, 30)
    ended = dgpo(*asked)
    assert ended.status == 0, ended.err
    cut(made / "d", "episodes.jsonl", 2)
    day(2025, 12, 1)
    assert dgpo(*asked).status == 0
    assert openings(made / "d" / "trajectories.jsonl") == {FIRST}

    students = ["--student", "model", "--teacher", "model", *common, "-osteps=1"]
    ended = dgpo("kd", "--method", "opd", "--data", "d", *students, "-obatch_size=2", "--out", "k")
    assert ended.status == 0, ended.err
    assert read_run(made / "k")["date"] == "2025-12-01"
    ended = dgpo("rl", "--method", "ppo", "--data", "q/nq.jsonl", *students[:2], *common, "-osteps=1",
                 "-obatch_size=2", "-omini_batches=1", "--out", "r")  # fmt: skip
    assert ended.status == 0, ended.err
    assert read_run(made / "r")["date"] == "2025-12-01"
    for run in ("k", "r"):  # a model is asked on the day of whoever asks
        assert "date" not in json.loads((made / run / "best" / "protocol.json").read_text())


def test_a_template_without_a_date_needs_none(made: Path, dgpo) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{{ strftime_now('%d %m %Y') }}", "a day")
    tokenizer.save_pretrained(made / "model")
    asked = ["eval", "--model", "model", "--index", "index", "--bench", "nq", "--bench-dir", "q", *SHORT]
    assert dgpo(*asked, "--out", "a").status == 0
    assert "date" not in read_run(made / "a")
    assert "date" not in json.loads((made / "a" / "nq.jsonl").read_text().splitlines()[0])["protocol"]


def test_a_dated_template_reads_as_transformers_renders_it(made: Path) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}\n"
        "{% endfor %}{{ strftime_now('%Y') }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}"
    )
    today = Codec(tokenizer, DEFAULT).prompt_ids("Who?").ids
    then = Codec(tokenizer, replace(DEFAULT, date=datetime.now().date().isoformat())).prompt_ids("Who?").ids
    assert then == today
