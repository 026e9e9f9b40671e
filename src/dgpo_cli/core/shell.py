"""Commands for a person to type, as a shell reads them."""

from __future__ import annotations

import shlex
from pathlib import Path

from dgpo_cli.core.untrusted import visible

_ESCAPED = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}


def command(*words: str | Path) -> str:
    """A command on one line that a terminal shows as it is, and that runs as it stands."""
    return " ".join(map(word, words))


def word(argument: str | Path) -> str:
    """One argument, quoted where a shell needs it.

    What a terminal would obey or hide is written as an escape, which bash and zsh read back. A path that begins like
    an option gets ./ before it.
    """
    text = str(argument)
    if isinstance(argument, Path) and text.startswith("-"):
        text = f"./{text}"
    if not any(map(_is_unseen, text)):
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _is_unseen(character: str) -> bool:
    return character in "\n\t" or visible(character) != character


def _escaped(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    return f"\\U{ord(character):08x}" if _is_unseen(character) else character
