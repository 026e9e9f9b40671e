"""Text of others in commands to type and in Markdown: the same argument, and no markup of theirs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_cli.core.markdown import block, code, inline
from dgpo_cli.core.shell import command, word
from dgpo_cli.core.untrusted import visible

ODD = (
    "a b", "it's", '"', "$(touch x)", "`touch x`", "a\nb", "a\tb", "\x1b[2J", "\u202eabc", "\\n", "!", "*", "~", "",
    "é東", "a'\n$x", "\U000e0041", "-x", "#", "a;b", "a\\'\nb",
)  # fmt: skip


@pytest.fixture(scope="module")
def bash():
    """What bash makes of an argument, of as many as are asked; one process for all."""

    def read(words: list[str]) -> list[str]:
        script = "".join(f"printf '%s\\0' {one}\n" for one in words)
        told = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
        return told.stdout.decode().split("\0")[:-1]

    return read


def test_only_one_module_quotes_for_a_shell() -> None:
    package = Path(__file__).parents[2] / "src" / "dgpo_cli"
    assert [path.name for path in package.rglob("*.py") if "shlex" in path.read_text(encoding="utf-8")] == ["shell.py"]


def test_bash_reads_back_what_was_meant_and_a_terminal_shows_it(bash):
    words = [word(text) for text in ODD]
    assert bash(words) == list(ODD)
    assert all(visible(one) == one and "\n" not in one and "\t" not in one for one in words)


@settings(max_examples=5)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=40, max_size=40))
def test_any_text(texts):
    words = [word(text) for text in texts]
    script = "".join(f"printf '%s\\0' {one}\n" for one in words)
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert told.stdout.decode().split("\0")[:-1] == texts


def test_a_path_is_no_option_and_plain_words_stay_as_they_are():
    assert command("dgpo", "report", Path("-x")) == "dgpo report ./-x"
    assert command("dgpo", "report", Path("runs/eval-0001")) == "dgpo report runs/eval-0001"


MARKUP = ("[a](http://x)", "![a](http://x)", "<img src=x>", "`x`", "*a*", "_a_", "a|b", "\\", "# a\n# b", "a\n\n- b")


@pytest.mark.parametrize("text", MARKUP)
def test_markup_of_others_is_shown_as_text(text):
    from markdown_it import MarkdownIt

    for line in (f"## {inline(text)}", f"- {inline(text)}", f"**a** {inline(text)}", code(text), f"x {code(text)} y"):
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(line)
        kinds = {child.type for token in tokens for child in token.children or ()}
        assert not kinds & {"link_open", "image", "html_inline", "em_open"}, (line, kinds)
        assert sum(token.type == "inline" for token in tokens) == 1, line
        shown = "".join(child.content for token in tokens for child in token.children or ())
        assert shown.endswith((" ".join(text.split()), f"{' '.join(text.split())} y"))


def test_a_name_with_underscores_stays_readable():
    assert inline("dgpo_k1 of runs/kd_longer, 95 %") == "dgpo_k1 of runs/kd_longer, 95 %"


@pytest.mark.parametrize("text", ["a = '```'", "````\n```", "plain"])
def test_a_block_ends_where_it_should(text):
    from markdown_it import MarkdownIt

    (token,) = MarkdownIt().parse(block(text, "toml"))
    assert token.content == f"{text}\n" and token.info == "toml"
