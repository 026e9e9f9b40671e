"""Results on stdout, everything else on stderr, and nothing but JSON on stdout with --json."""

from __future__ import annotations

import json

import pytest

from dgpo_cli.console import Console


def test_json_leaves_stdout_to_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json_output=True)
    console.info("looking")
    console.warn("careful")
    console.print("for people")
    console.table("t", ["a"], [[1]])
    with console.progress("working") as progress:
        progress(1, 2)
    console.result({"em": 0.5, "name": "ü"})
    captured = capsys.readouterr()
    assert captured.out == '{"em": 0.5, "name": "ü"}\n'
    assert captured.err == "looking\nwarning: careful\n"


def test_people_get_text_and_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.print("[bold]not markup[/bold]")
    console.table("scores", ["set", "em", "n"], [["nq", 0.25, 3610], ["[x]", None, 5]])
    console.result({"em": 0.5})
    out = capsys.readouterr().out
    assert "[bold]not markup[/bold]" in out
    assert "0.250" in out
    assert "3,610" in out
    assert "[x]" in out
    assert "{" not in out


def test_quiet_keeps_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.info("looking")
    console.warn("careful")
    console.print("result")
    with console.progress("working") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("result\n", "warning: careful\n")


def test_a_long_table_row_is_whole_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("", ["a"], [["x" * 120]])
    assert "x" * 120 in capsys.readouterr().out


def test_progress_without_a_terminal_speaks_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 16.0, 20.0, 32.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Console().progress("reading", "passage") as progress:
        for done in (0, 150, 190, 310):
            progress(done, 410)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 150/410 (9.4 passage/s, 28 s left)",
        "reading: 310/410 (9.7 passage/s, 10 s left)",
    ]


def test_json_holds_what_python_cannot_confuse() -> None:
    assert json.loads(json.dumps({"a": 1})) == {"a": 1}


def test_a_second_pass_has_a_rate_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 20.0, 30.0, 50.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Console().progress("loading", "passage") as progress:
        for done in (0, 100, 10, 20):
            progress(done, 110)
    assert capsys.readouterr().err.splitlines()[-1] == "loading: 20/110 (0.5 passage/s, 180 s left)"
