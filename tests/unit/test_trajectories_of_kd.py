"""What kd trains on: every attempt once, tokens that the model knows, finite numbers, something written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, StopReason
from dgpo_cli.errors import InputError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.sources import ModelSource
from dgpo_cli.training.teacher.trajectory_files import read_trajectories, recorded_limits, require_known_tokens

GOOD = Trajectory(
    Question("1", "Who?", ("A",), "x"), (5, 6, 7), (False, True, True), (0.0, -1.0, -0.5), (), StopReason.ANSWERED, "A"
)


def write(path: Path, *rows: dict[str, Any], header: dict[str, Any] | None = None) -> Path:
    first = {"schema": "trajectories", "version": 1, "protocol": DEFAULT.to_json()} | (header or {})
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return GOOD.to_json() | changes


BAD: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": [5, -1, 7]}, r"`token_ids\[1\]` is -1"),
    ({"token_ids": [5, "a", 7]}, r"`token_ids\[1\]` is 'a'"),
    ({"token_ids": [5, 6.0, 7]}, r"`token_ids\[1\]` is 6.0"),
    ({"token_ids": [5, 6]}, "differ in length"),
    ({"written": "111"}, "first token has no context"),
    ({"written": "01x"}, "`written` is '01x'"),
    ({"logprobs": [0.0, float("nan"), 0.0]}, r"`logprobs\[1\]` is nan"),
    ({"logprobs": [0.0, float("-inf"), 0.0]}, r"`logprobs\[1\]` is -inf"),
    ({"logprobs": []}, "differ in length"),
    ({"stop": "bored"}, "`stop` is 'bored', not one of"),
    ({"searches": [{}]}, r"`searches\[0\].query` is missing"),
    ({"question": {"id": "1"}}, "`question.question` is missing"),
    ({"score": {"total": 1, "correct": 1, "parts": {}}}, "`score.correct` is 1, not true or false"),
    ({"sample": -1}, "`sample` is -1"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_record_that_is_none_is_named_by_its_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = write(tmp_path / "t.jsonl", row(), row(**({"sample": 1} | changes)))
    with pytest.raises(InputError, match=rf"t\.jsonl:3: not a trajectory \(.*{reason}"):
        read_trajectories(file)


def test_an_attempt_is_there_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.jsonl:4: attempt 'x/1/0' is also on line 2"):
        read_trajectories(write(tmp_path / "t.jsonl", row(), row(sample=1), row()))


def test_what_no_model_wrote_is_left_out_and_counted(tmp_path: Path) -> None:
    data = read_trajectories(write(tmp_path / "t.jsonl", row(), row(sample=1, written="000")))
    assert (data.trajectories, data.unwritten) == ([GOOD], (3,))
    with pytest.raises(InputError, match="no trajectory holds a token that a model wrote"):
        read_trajectories(write(tmp_path / "t.jsonl", row(written="000")))


def test_a_header_without_a_protocol_is_named(tmp_path: Path) -> None:
    for read in (read_trajectories, recorded_limits):
        with pytest.raises(InputError, match=r"t\.jsonl:1: `protocol` is \[?.*not an object"):
            read(write(tmp_path / "t.jsonl", row(), header={"protocol": 3}))
        with pytest.raises(InputError, match=r"t\.jsonl:1: the protocol: `prompt` is 5, not a text"):
            read(write(tmp_path / "t.jsonl", row(), header={"protocol": DEFAULT.to_json() | {"prompt": 5}}))


def test_token_ids_are_those_of_the_model(tmp_path: Path) -> None:
    data = read_trajectories(write(tmp_path / "t.jsonl", row(token_ids=[5, 6, 1_000_000])))
    (tmp_path / "config.json").write_text('{"vocab_size": 1000}')
    with pytest.raises(InputError, match="token id 1000000, m knows 1000"):
        require_known_tokens(data, ModelSource("m", str(tmp_path), local=True))
    (tmp_path / "config.json").write_text('{"vocab_size": 1000001}')
    require_known_tokens(data, ModelSource("m", str(tmp_path), local=True))
