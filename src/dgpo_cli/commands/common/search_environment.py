"""Settings of search servers from the environment, and the check of a token."""

from __future__ import annotations

import os
from pathlib import Path

from dgpo_cli.core.untrusted import LARGEST_RECORD, read_bytes
from dgpo_cli.errors import ConfigError

_LEAST_TOKEN = 16  # characters
TOKEN_VARIABLE, TIMEOUT_VARIABLE = "DGPO_SEARCH_TOKEN", "DGPO_SEARCH_TIMEOUT"


def search_token() -> str | None:
    """The token of search servers, asked for by `dgpo serve` and sent by everything that searches; None if unset."""
    value = os.environ.get(TOKEN_VARIABLE)
    return sendable_token(value, TOKEN_VARIABLE) if value else None


_NEW_TOKEN = "make one: python -c 'import secrets; print(secrets.token_hex(32))' > token.txt"


def sendable_token(text: str, source: str, hint: str = _NEW_TOKEN) -> str:
    """A token as it goes into a header. Raises ConfigError, which does not show it, for one that cannot."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{source} holds no token, which is one word of letters, digits and signs", hint=hint)
    return token


def require_token_beyond_loopback(token: str | None, loopback: bool, host: str, doing: str) -> None:
    """Raises ConfigError for a server that listens beyond this machine and asks for no token."""
    if token is None and not loopback:
        raise ConfigError(
            f"without a token only this machine may {doing}, and {host} is open to others",
            hint=f"give --token-file FILE (or set {TOKEN_VARIABLE}), or --host 127.0.0.1",
        )


def server_token(file: Path | None) -> str | None:
    """What clients of a server must send: the token in `file`, else the environment's; None without either.

    Raises ConfigError for a token that cannot be sent in a header, or can be guessed, InputError for no file.
    """
    if file is None:
        token, source = search_token(), TOKEN_VARIABLE
    else:
        # An error of decoding would show a byte of it.
        text = read_bytes(file, LARGEST_RECORD).decode(errors="replace")
        token, source = sendable_token(text, str(file)), str(file)
    if token is not None and len(token) < _LEAST_TOKEN:
        raise ConfigError(
            f"the token of {source} has {len(token)} characters, fewer than {_LEAST_TOKEN} can be guessed",
            hint=_NEW_TOKEN,
        )
    return token


def use_search_environment() -> None:
    """Let every search server that is opened from now on be asked as the environment says."""
    token, timeout = search_token(), os.environ.get(TIMEOUT_VARIABLE)
    if token is None and not timeout:
        return
    from dgpo_cli.retrieval.remote.search_r1 import SearchServerAccess, use_access

    try:
        timeout_s = float(timeout) if timeout else SearchServerAccess().timeout_s
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise ConfigError(f"{TIMEOUT_VARIABLE} = {timeout!r} is no number of seconds", hint="give one, such as 120")
    use_access(SearchServerAccess(token=token, timeout_s=timeout_s))
