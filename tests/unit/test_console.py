"""Results on stdout, everything else on stderr, and nothing but JSON on stdout with --json."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
import rich.console

from dgpo_cli.console import Console, say_error


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


def screen(monkeypatch: pytest.MonkeyPatch, width: int = 80) -> tuple[Console, io.StringIO]:
    """A console whose two ends are one terminal of `width` characters, and what it shows."""
    console, shown = Console(), io.StringIO()
    for name in ("_out", "_err"):
        terminal = rich.console.Console(
            file=shown, force_terminal=True, width=width, height=24, highlight=False, emoji=False, no_color=True
        )
        monkeypatch.setattr(console, name, terminal)
    return console, shown


def text_of(shown: io.StringIO) -> list[str]:
    """Lines without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines()


COLUMNS = ["run", "truncated observations", "EM", "95 %", "searches", "written tokens", "of which invalid", "note"]
ROWS = [
    ["eval-dgpo", 123456, "86.0 %", "80.1-90.2 %", 1.25, 98765, 12, "a remark that goes on and on"],
    ["x"] + [None] * 7,
]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_that_is_too_wide_goes_on_below_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    console, shown = screen(monkeypatch, width)
    console.table("", COLUMNS, ROWS)
    lines = text_of(shown)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    wanted = {w for column in COLUMNS for w in column.split()} | {
        "eval-dgpo",
        "123,456",
        "80.1-90.2",
        "98,765",
        "remark",
    }
    assert wanted <= words
    assert any("86.0 %" in line for line in lines)
    heads = [line for line in lines if line.split()[:1] == ["eval-dgpo"]]
    assert len(heads) > 1 or width == 120, "each part begins with the first column"


def test_a_word_that_no_line_can_hold_gives_way_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    console, shown = screen(monkeypatch, 60)
    console.table("", ["what", "why"], [["/home/someone/work/" + "x" * 60 + "/runs/eval-0001", "because"]])
    row = text_of(shown)[3]
    assert row.split()[0].startswith("/home/someone") and row.split()[0].endswith("/eval-0001") and "…" in row


def test_lines_on_a_terminal_end_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    console, shown = screen(monkeypatch)
    text = "a sentence of several words that is longer than one line " * 4
    for say in (console.print, console.info, console.warn):
        say(text)
    lines = text_of(shown)
    assert max(map(len, lines)) <= 80
    assert {word for line in lines for word in line.split()} == {*text.split(), "warning:"}


def test_the_bar_has_its_figures_below_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    console, shown = screen(monkeypatch)
    clock(monkeypatch, 0.0, 60.0)
    with console.progress("teacher's episodes", "episode") as progress:
        progress(3, 12000)
        progress(2500, 12000, "EM 45.0 %, 1,234 tokens/s")
    lines = text_of(shown)
    assert any(line.startswith("EM 45.0 %, 1,234 tokens/s") for line in lines)
    bars = [line for line in lines if "2500/12000" in line]
    assert bars and all("left" in line and len(line) <= 80 for line in bars)


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """What the clock shows each time that it is asked."""
    times = iter(seconds)
    monkeypatch.setattr("time.monotonic", lambda: next(times))


def test_progress_without_a_terminal_speaks_soon_and_then_once_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 0.0, 1.0, 6.0, 20.0, 66.0)
    with Console().progress("reading", "passage") as progress:
        progress(0, 4100)
        progress(50, 4100)
        progress(200, 4100, "EM 45.0 %")
        progress(650, 4100, "EM 46.0 %")
    assert capsys.readouterr().err.splitlines() == [
        "reading: 50/4,100 (10.0 passage/s, 7 min left)",
        "reading: 650/4,100 (10.0 passage/s, 6 min left); EM 46.0 %",
    ]


def test_work_that_a_time_limit_ends_has_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 0.0, 1.0, 61.0)
    with Console().progress("kd_longer", "s") as progress:
        progress(0, 600)
        progress(60, 600, "loss 0.013")
    assert capsys.readouterr().err == "kd_longer: 60/600 s (9 min left); loss 0.013\n"


def test_progress_speaks_while_nothing_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that loads, and a step that takes minutes, say nothing: the line comes all the same, until the end."""
    monkeypatch.setattr("dgpo_cli.core.progress._FIRST_LINE_S", 0.05)
    monkeypatch.setattr("dgpo_cli.core.progress._LINE_S", 0.2)

    def said(lines: int) -> list[str]:
        until, found = time.monotonic() + 20, ""
        while found.count("\n") < lines and time.monotonic() < until:
            time.sleep(0.01)
            found += capsys.readouterr().err
        return found.splitlines()

    with Console().progress("kd (kd)", "step") as progress:
        assert re.fullmatch(r"kd \(kd\): \d+ s so far", said(1)[0])
        progress(0, 60)
        assert re.fullmatch(r"kd \(kd\): 0/60 \(\d+ s so far\)", said(2)[-1])
        progress(1, 60, "loss 2.500")
        assert re.fullmatch(r"kd \(kd\): 1/60 \([\d.]+ s/step, \d+ (s|min) left\); loss 2.500", said(7)[-1])
    capsys.readouterr()
    time.sleep(0.5)
    assert capsys.readouterr().err == ""
    with Console(quiet=True).progress("kd (kd)", "step"):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_work_that_goes_on_counts_its_own_share_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes 100 s; 900 of 1,000 were there, and 10 more take 60 s."""
    clock(monkeypatch, 0.0, 100.0, 160.0)
    with Console().progress("questions", "question") as progress:
        progress(900, 1000)
        progress(910, 1000)
    assert capsys.readouterr().err.splitlines()[-1] == "questions: 910/1,000 (6.0 s/question, 9 min left)"


def test_a_bar_knows_the_time_left_of_steps_that_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    console, shown = screen(monkeypatch)
    clock(monkeypatch, 0.0, 600.0, 900.0)
    with console.progress("rl (dgpo)", "step") as progress:
        progress(20, 60)
        progress(21, 60)
        progress(21, 60, "episodes 3/8")
    bars = [line for line in text_of(shown) if "21/60" in line]
    assert "900.0 s/step" in bars[-1] and "9 h 45 min left" in bars[-1] and len(bars[-1]) <= 80


def test_json_holds_what_python_cannot_confuse() -> None:
    assert json.loads(json.dumps({"a": 1})) == {"a": 1}


def test_a_second_pass_has_a_rate_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 0.0, 0.0, 20.0, 30.0, 90.0)
    with Console().progress("loading", "passage") as progress:
        for done in (0, 100, 10, 25):
            progress(done, 110)
    assert capsys.readouterr().err.splitlines()[-1] == "loading: 25/110 (4.0 s/passage, 6 min left)"


def test_what_to_type_next_is_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    console, shown = screen(monkeypatch)
    long = "dgpo eval --bench tinyworld --bench-dir /a/rather/long/folder/quickstart/world --model runs/rl-0001"
    console.next(long, "dgpo chat")
    assert text_of(shown) == [f"next: {long}", "      dgpo chat"]


HOSTILE = "a\x1b[2J\x07\x9b1m\u202eb\udce9"
SHOWN = "a\ufffd[2J\ufffd\ufffd1m\ufffdb\ufffd"


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.StringIO, _Tty], ids=["file", "terminal"])
def test_no_control_character_reaches_the_terminal(monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]) -> None:
    out, err = kind(), kind()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    console = Console()
    for say in (console.info, console.warn, console.print, console.paragraph, console.stream, console.end_stream,
                console.next, console.ask, say_error):  # fmt: skip
        say(*([] if say == console.end_stream else [HOSTILE]))
    console.table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 1]])
    with console.progress(HOSTILE, HOSTILE) as progress:
        progress(1, 2, note=HOSTILE)
        progress(2, 2, note=HOSTILE)
    written = out.getvalue() + err.getvalue()
    assert written.count(SHOWN) >= 10
    assert "\x1b[2J" not in written and not set("\x07\x9b\u202e\udce9") & set(written)


def test_every_method_that_writes_is_in_the_test_above() -> None:
    public = {name for name, value in vars(Console).items() if callable(value) and not name.startswith("_")}
    assert public == {
        "info", "warn", "print", "paragraph", "stream", "end_stream", "next", "ask", "table", "progress", "result",
    }  # fmt: skip


def test_json_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json_output=True).result({HOSTILE: [HOSTILE]})
    out = capsys.readouterr().out
    assert json.loads(out) == {HOSTILE: [HOSTILE]}
    assert not set("\x1b\x07\x9b\u202e\udce9") & set(out)
