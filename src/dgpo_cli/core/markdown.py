"""Text of others inside Markdown: shown as it is, whatever markup it holds."""

from __future__ import annotations

import re

from dgpo_cli.core.untrusted import visible

# What begins a link, a picture, an element, code, emphasis or a cell, and at the front of a line a heading, a list or
# a rule. An underscore within a word begins nothing.
_MARKUP = re.compile(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)|^[#+=~-]")
_TICKS = re.compile("`+")


def inline(text: str) -> str:
    """One line of plain text."""
    return _MARKUP.sub(r"\\\g<0>", _line(text))


def code(text: str) -> str:
    """One line of code within a sentence."""
    shown = _line(text)
    ticks = "`" * (1 + _longest(shown))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def block(text: str, language: str = "") -> str:
    """Lines of code."""
    fence = "`" * max(3, 1 + _longest(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _line(text: str) -> str:
    return " ".join(visible(text).split())


def _longest(text: str) -> int:
    return max((len(run) for run in _TICKS.findall(text)), default=0)
