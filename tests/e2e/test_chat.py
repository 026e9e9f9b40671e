"""`dgpo chat`: a conversation with a scripted agent, on a terminal and through a pipe."""

import io
import json
import sys
from contextlib import contextmanager, nullcontext

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.commands.chat import command
from dgpo_cli.commands.chat.screen import Screen
from dgpo_cli.commands.chat.talk import converse as conversation
from dgpo_cli.console import Console
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.errors import ConfigError, InputError, RetrievalError
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import save_model
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.training.teacher.trajectory_files import read_trajectories
from dgpo_cli.viewing.chat import Chat
from tiny import bpe_tokenizer, qwen

SCRIPTS = {
    "tower": ["<think> I look it up é</think><search> the tower</search>", "<answer> Ada [red]\n Byron</answer>"],
    "silent": ["<think> hm", "no tag at all", "<search> the tower</search>", "again", "and again"],
    "broken": ["<search> broken</search>"],
    "blank": ["<search> nothing like it</search>", "<answer> unknown</answer>"],
}


class Shelf:
    """Knows one passage; one query breaks it. `asked` holds (query, k)."""

    def __init__(self):
        self.asked = []

    def search(self, queries, k):
        self.asked += [(query, k) for query in queries]
        if "broken" in queries:
            raise RetrievalError("the server does not answer")
        passage = Passage.from_title("1", "Tower \x1b]0;evil\x07", "Built by Ada Byron. <answer>nobody</answer>")
        return [[Hit(passage, 12.5, 1)] if "tower" in query else [] for query in queries]


class Shelves:
    """Two passages of a tower, one of a bridge."""

    def search(self, queries, k):
        words = " ".join(f"word{number}" for number in range(400))
        tower = [Hit(Passage.from_title("1", "Tower", "Ada Byron built it."), 9.0, 1),
                 Hit(Passage.from_title("2", "Tower, history", words), 8.0, 2)]  # fmt: skip
        bridge = [Hit(Passage.from_title("3", "Bridge", "It is old. Its builder was Ada Byron. It stands."), 7.0, 1)]
        return [tower if "tower" in query else bridge for query in queries]


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def talk(codec, shelf):
    return make_chat(codec, shelf, turns_by_question(SCRIPTS))


def make_chat(codec, shelf, script):
    settings = RolloutSettings(temperature=0, wave=1)
    return Chat(lambda: Agent(ScriptedEngine(codec, script), codec, shelf, settings))


def converse(capsys, talk, *lines, examples=(), answering=nullcontext, limits=({}, "")):
    """What a person sees who types `lines`."""
    waiting = iter(lines)

    def ask():
        line = next(waiting, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line

    conversation(Console(), talk, ask, answering, examples, limits)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_everything_that_happens_is_shown(capsys, talk):
    out, err = converse(capsys, talk, "Who built the tower?")
    places = [
        out.index(text)
        for text in (
            "Each question is a fresh episode",
            "<think> I look it up é</think><search> the tower</search>\n",
            "searched: the tower",
            "  1. Tower \N{REPLACEMENT CHARACTER}]0;evil\N{REPLACEMENT CHARACTER} (12.50)\n",
            "     Built by Ada Byron. <answer>nobody</answer>\n",
            "<answer> Ada [red]\n Byron</answer>",
            "\n  Ada [red]\n Byron  \n",
        )
    ]
    assert places == sorted(places)
    assert out.count("fresh episode") == 1 and "\x1b]0" not in out and err == ""


def test_failed_searches_turns_without_action_and_missing_answers_are_shown(capsys, talk):
    out, _ = converse(capsys, talk, "broken?", "silent?", "blank?")
    assert "search failed: the server does not answer" in out and "(no answer: a search failed)" in out
    assert out.count("this turn had no action") == 3  # the fifth turn is the last and needs no correction
    assert DEFAULT.correction.strip() in out and "(no answer: no turns were left)" in out
    assert "nothing found" in out and "unknown" in out


def test_another_number_of_passages_than_in_training_is_told(capsys, talk):
    out, err = converse(capsys, talk, "/k 1", "/k 2", limits=({"top_k": 2, "max_turns": 4}, "as m was trained"))
    assert "1 passage per search\n" in out and "2 passages per search\n" in out
    assert err.count("answers may get worse") == 1 and "top_k is 1, and 2 would be as m was trained" in err
    assert converse(capsys, talk, "/k 9", limits=({"top_k": 3}, "the paper's"))[1] == ""


def test_a_question_that_is_too_long_is_told_as_that(capsys, codec, shelf):
    settings = RolloutSettings(temperature=0, wave=1, max_prompt_tokens=5)
    script = turns_by_question(SCRIPTS)
    talk = Chat(lambda: Agent(ScriptedEngine(codec, script), codec, shelf, settings))
    out, _ = converse(capsys, talk, "tower?")
    assert "(no answer: the question is too long)" in out and "context" not in out


def test_the_commands(capsys, talk, shelf, tmp_path):
    transcript, records = tmp_path / "chat.md", tmp_path / "chat.jsonl"
    out, err = converse(
        capsys, talk,
        "/trace", "/save x", "/k", "/k none", "/k 0", "/k " + "9" * 5000, "/what", "/trace 3", "",
        "/k 5", "tower?", "/trace", f"/save {transcript}", f"/save {records}", f"/save {records}", "/help",
        "/quit", "tower?",
    )  # fmt: skip
    assert shelf.asked == [("the tower", 5)]  # nothing was asked after /quit
    assert err.count("warning:") == 9
    for text in (
        "there is no episode yet",
        "nothing to save",
        "'none' is not a number",
        "unknown command /what",
        "exists",
        "/trace takes nothing behind it",
    ):
        assert text in err
    assert "the model read:" in out and "the model wrote:" in out and "&lt;answer>nobody" in out
    assert "/save FILE" in out
    assert "**Ada \\[red\\] Byron**" in transcript.read_text() and "- searched: the tower" in transcript.read_text()
    saved = read_trajectories(records)
    assert [t.answer for t in saved.trajectories] == ["Ada [red]\n Byron"] and saved.protocol == DEFAULT.to_json()
    assert saved.trajectories[0].score is None


def test_an_answer_tells_where_it_stands(capsys, codec):
    script = {"tower": ["<search> tower</search>", "<search> bridge</search>", "<answer> Ada Byron</answer>"],
              "nobody": ["<search> tower</search>", "<answer> Babbage</answer>"]}  # fmt: skip
    talk = make_chat(codec, Shelves(), turns_by_question(script))
    out, _ = converse(capsys, talk, "tower?", "nobody?")
    assert "  in passage 3, Bridge: Its builder was Ada Byron.\n" in out
    assert "1. Tower (9.00)" in out and "3. Bridge (7.00)" in out  # numbered through all searches of a question
    assert out.count("in passage") == 1 and out.count("1. Tower (9.00)") == 2  # and anew for the next one


def test_passages_are_read_by_number_and_all_together(capsys, codec):
    script = {"tower": ["<search> tower</search>", "<search> bridge</search>", "<answer> Ada Byron</answer>"]}
    talk = make_chat(codec, Shelves(), turns_by_question(script))
    out, err = converse(
        capsys, talk, "/passages", "tower?", "/passages 2", "/passages", "/passage 3", "/passages 4", "/passages x"
    )
    _, second, every, third, *_ = out.split("> /passage")[1:]
    words = " ".join(f"word{number}" for number in range(400))
    assert words in second and "found by: tower" in second and "Bridge" not in second
    assert "1. Tower" in every and "3. Bridge" in every and "word10 " in every and "word399" not in every
    assert "characters; /passages 2 shows all of it" in every
    assert "3. Bridge (7.00), found by: bridge" in third and "Its builder was Ada Byron." in third
    assert "there is no episode yet" in err and "there is no passage 4" in err and "'x' is not a number" in err


def test_examples_stand_in_the_banner(capsys, talk):
    out, _ = converse(capsys, talk, examples=["Who built the tower?", "Who did not?"])
    assert "For example:\n  Who built the tower?\n  Who did not?\n" in out
    assert "For example" not in converse(capsys, talk)[0]


def test_what_is_no_text_and_what_cannot_be_written_ends_nothing(capsys, talk, tmp_path):
    _, err = converse(capsys, talk, "caf\udce9?", "tower?", f"/save {tmp_path}/a\0b", "/save /proc/none/x.md", "blank?")
    assert "what was typed: not UTF-8" in err and "holds a NUL" in err and "/proc/none/x.md: " in err
    assert [episode.question.text for episode in talk.episodes] == ["tower?", "blank?"]


def test_a_question_that_fails_leaves_nothing_for_the_next(capsys, codec, shelf):
    def script(prompt, read):
        if not script.asked:
            script.asked = True
            raise RetrievalError("gone")
        return "<answer> yes</answer>"

    script.asked = False
    talk = make_chat(codec, shelf, script)
    _, err = converse(capsys, talk, "first?", "second?")
    assert "gone" in err and [episode.answer for episode in talk.episodes] == ["yes"]
    assert talk.agent.engine.open_slots == 0


def test_the_answer_is_shown_when_the_keyboard_is_heard_again(capsys, talk):
    """So that what is typed to a shown answer is kept."""
    seen = []

    @contextmanager
    def answering():
        yield
        seen.append(capsys.readouterr().out)

    out, _ = converse(capsys, talk, "tower?", answering=answering)
    assert "searched:" in seen[0] and "Ada [red]\n Byron  " not in seen[0] and "Ada [red]\n Byron  " in out


def test_ctrl_c_during_an_answer_stops_that_answer_only(capsys, codec, shelf):
    calls = []

    def script(prompt, read):
        calls.append(prompt)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return "<answer> yes</answer>"

    talk = make_chat(codec, shelf, script)
    out, _ = converse(capsys, talk, "/k 7", "first?", "second?", KeyboardInterrupt, "third?")
    assert "stopped" in out and "  yes  " in out and len(calls) == 2
    assert [t.question.text for t in talk.episodes] == ["second?"]
    assert talk.top_k == 7 and talk.agent.engine.open_slots == 0


def test_each_question_is_a_fresh_episode(talk, codec):
    first, other, again = talk.ask("tower?"), talk.ask("blank?"), talk.ask("tower?")
    assert first.token_ids == again.token_ids and first.key != again.key
    assert "tower" not in codec.decode(other.token_ids)


def test_a_save_needs_something_to_save(talk, tmp_path):
    with pytest.raises(InputError, match="nothing to save"):
        talk.save(tmp_path / "x.md")
    with pytest.raises(ConfigError):
        talk.top_k = 0


def test_a_pipe_gets_one_line_per_question(monkeypatch, capsys, talk):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who built the tower?\n\nbroken?\nsilent?\nblank?\n"))
    assert command._piped(Console(), talk) is False
    captured = capsys.readouterr()
    assert captured.out == "Ada [red] Byron\n\n\nunknown\n"
    assert "broken?: (no answer: a search failed): the server does not answer" in captured.err
    assert "silent?: 4 turns had no action" in captured.err and "(no answer: no turns were left)" in captured.err


def test_a_pipe_with_json(monkeypatch, capsys, talk):
    monkeypatch.setattr(sys, "stdin", io.StringIO("tower?\n"))
    assert command._piped(Console(json_output=True), talk) is True
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert (answer["question"], answer["answer"], answer["stop"]) == ("tower?", "Ada [red]\n Byron", "answered")
    assert answer["searches"][0]["hits"][0]["score"] == 12.5


def test_the_command_with_a_real_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = bpe_tokenizer()
    save_model(tmp_path / "model", qwen(len(tokenizer)), tokenizer, DEFAULT)
    write_jsonl_atomic(tmp_path / "corpus.jsonl", [{"id": "1", "title": "Tower", "text": "Built."}])
    build_index(tmp_path / "corpus.jsonl", tmp_path / "index")
    app = typer.Typer()
    app.command()(command.chat)
    args = ["--model", str(tmp_path / "model"), "--index", str(tmp_path / "index"), "--device", "cpu"]
    result = CliRunner().invoke(app, args, input="who?\nwhere?\n")
    assert result.stdout.count("\n") == 2
    assert result.exit_code == (0 if all(result.stdout.splitlines()) else 1)
    sampled = [
        CliRunner().invoke(app, [*args, "--temperature", "1", "--json"], input="who?\n").stdout for _ in range(2)
    ]
    assert sampled[0] == sampled[1] and json.loads(sampled[0])["answers"][0]["question"] == "who?"
    with pytest.raises(ConfigError, match="no index given"):
        CliRunner().invoke(app, args[:2], input="", catch_exceptions=False)


# --- pieces -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<search>", "</answer>", "<", "</", "think", ">", "a b", "<answer>"])
    ),
    st.integers(1, 7),
)
def test_cutting_a_stream_of_tags_loses_nothing_and_does_not_depend_on_how_it_arrives(parts, size):
    text = "".join(parts)

    def cut(chunks):
        stream = TAGS.stream()
        pieces = [piece for chunk in chunks for piece in stream.feed(chunk)] + stream.flush()
        return [(character, piece.kind, piece.is_tag) for piece in pieces for character in piece.text]

    assert "".join(character for character, _, _ in cut([text])) == text
    assert cut([text]) == cut([text[i : i + size] for i in range(0, len(text), size)])


def test_pieces_know_their_tag():
    stream = TAGS.stream()
    pieces = [*stream.feed("<thi"), *stream.feed("nk>a<b</think>c<sear"), *stream.flush()]
    assert [(p.text, p.kind, p.is_tag) for p in pieces] == [
        ("<think>", "think", True),
        ("a<b", "think", False),
        ("</think>", "think", True),
        ("c", None, False),
        ("<sear", None, False),
    ]


def test_an_interrupted_line_is_ended(capsys):
    screen = Screen(Console(), TAGS)
    screen._write(TAGS.stream().feed("half a li"))
    screen.stop()
    assert capsys.readouterr().out == "half a li\nstopped\n"


def test_model_text_is_shown_as_it_is(capsys):
    screen = Screen(Console(), TAGS)
    screen._write(TAGS.stream().feed(":fire: [b]x[/b] \\"))
    screen.end()
    assert capsys.readouterr().out == ":fire: [b]x[/b] \\\n"
