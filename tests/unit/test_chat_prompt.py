"""The chat's input line, by keys that come through a pipe."""

import io
import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from dgpo_cli.commands.chat import command
from dgpo_cli.commands.chat import history as chat_history
from dgpo_cli.commands.chat.history import history_file, kept_history
from dgpo_cli.commands.chat.prompt import MARK, asking
from dgpo_cli.commands.chat.talk import COMMANDS
from dgpo_cli.console import Console

ARGUMENTS = {name: argument for name, (argument, _) in COMMANDS.items()}
UP, LEFT, ENTER, TAB, CTRL_C, CTRL_D, CTRL_A = "\x1b[A", "\x1b[D", "\r", "\t", "\x03", "\x04", "\x01"


def typed(*keys, history=None):
    """The lines that come of `keys`, each sent when the one before was read."""
    with create_pipe_input() as pipe:
        ask = asking(history or InMemoryHistory(), ARGUMENTS, keys=pipe, screen=DummyOutput())
        lines = []
        for some in keys:
            pipe.send_bytes(some.encode(errors="surrogateescape"))
            lines.append(ask())
        return lines


def test_a_terminal_that_moves_no_cursor_gets_plain_lines(monkeypatch, tmp_path, capsys):
    given = {}
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("dgpo_cli.commands.chat.talk.converse", lambda *args, **named: given.update(named, ask=args[2]))
    monkeypatch.setattr("dgpo_cli.models.sources.search_limits", lambda model: ({}, ""))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n"))
    command._converse(Console(), None, tmp_path, "m")
    assert given["ask"]() == "Who?" and given["repeats"] is False
    assert capsys.readouterr().out == MARK


def test_a_line_is_edited():
    assert typed("Where?" + LEFT + " now" + CTRL_A + "So: " + ENTER) == ["So: Where now?"]


@pytest.mark.parametrize("lines", ["one\ntwo\n\n three", "one\r\ntwo\rthree"])
def test_pasted_lines_are_one_question(lines):
    assert typed(f"\x1b[200~{lines}\x1b[201~{ENTER}") == ["one two three"]


def test_pasted_lines_are_one_question_on_a_terminal_that_does_not_say_what_is_pasted():
    assert typed(f"one{ENTER}two{ENTER}", "three" + ENTER) == ["one two", "three"]
    assert typed(f"one\ntwo\n") == ["one two"]  # noqa: F541


def test_earlier_lines_come_back():
    history = InMemoryHistory()
    assert typed("one" + ENTER, "two" + ENTER, UP + UP + "!" + ENTER, history=history)[-1] == "one!"
    assert history.get_strings() == ["one", "two", "one!"]
    assert typed("\x12on" + ENTER + ENTER, history=history) == ["one!"]  # Ctrl-R


@pytest.mark.parametrize(
    ("keys", "line"),
    [("/pa" + TAB, "/passages "), ("/h" + TAB, "/help"), ("/sa" + TAB + "x.md", "/save x.md"), ("pa" + TAB, "pa")],
)
def test_commands_are_completed(keys, line):
    assert typed(keys + ENTER) == [line]


def test_file_names_are_completed_where_a_command_takes_one(folder):
    Path("transcript.md").touch()
    assert typed("/save tr" + TAB + ENTER, "/k tr" + TAB + ENTER) == ["/save transcript.md", "/k tr"]


def test_ctrl_c_clears_the_line_and_leaves_an_empty_one():
    assert typed("wrong" + CTRL_C + "right" + ENTER) == ["right"]
    with pytest.raises(KeyboardInterrupt):
        typed(CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        typed("wrong" + CTRL_C + CTRL_C)


def test_ctrl_d_leaves():
    with pytest.raises(EOFError):
        typed(CTRL_D)


# --- history ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_history_lasts_and_is_private(state):
    assert typed("one" + ENTER, "zwei é" + ENTER, history=kept_history(Console())) == ["one", "zwei é"]
    assert typed(UP + ENTER, UP + UP + ENTER, history=kept_history(Console())) == ["zwei é", "one"]
    file = state / "dgpo" / "chat-history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    kept_history(Console())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_its_place_is_that_of_the_desktop_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_file() == tmp_path / ".local" / "state" / "dgpo" / "chat-history"


def test_history_stays_small_and_keeps_what_came_last(state, monkeypatch):
    monkeypatch.setattr(chat_history, "_LARGEST", 2_000)
    for number in range(100):
        kept_history(Console()).store_string(f"question {number}")
    file = state / "dgpo" / "chat-history"
    assert file.stat().st_size < 2_100 and stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = [line for line in kept_history(Console()).load_history_strings()]  # noqa: C416
    assert kept == [f"question {number}" for number in range(99, 99 - len(kept), -1)] and len(kept) > 10


@pytest.mark.parametrize("hindrance", ["folder", "file above", "pipe"])
def test_history_that_cannot_be_kept_is_a_warning(state, capsys, hindrance):
    import os

    file = state / "dgpo" / "chat-history"
    if hindrance == "file above":
        state.write_text("")
    else:
        file.parent.mkdir(parents=True)
        file.mkdir() if hindrance == "folder" else os.mkfifo(file)
    assert typed("one" + ENTER, UP + ENTER, history=kept_history(Console())) == ["one", "one"]
    assert "what you type is not kept for the next chat" in capsys.readouterr().err


def test_history_that_goes_away_ends_nothing(state):
    import shutil

    history = kept_history(Console())
    shutil.rmtree(state)
    assert typed("one" + ENTER, "caf\udce9" + ENTER, UP + UP + ENTER, history=history)[0] == "one"


def test_the_library_is_imported_by_nothing_but_a_conversation():
    import subprocess

    imports = "import sys, dgpo_cli.commands.chat.command, dgpo_cli.commands.chat.talk"
    probe = f"{imports}; print('prompt_toolkit' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
