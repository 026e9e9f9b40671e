"""The page of `dgpo report`: one HTML file that needs no network and lets nothing run but its own script.

With --watch the same page asks its own server for what is new, and no other.

Everything that was read (passages, questions, what models wrote) reaches the page as JSON in a block that no browser
runs, with `<` written as an escape, and is shown as text only. A content security policy stands behind that: it allows
the page's own script by its hash, and no request to anywhere but that server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dgpo_cli.core.untrusted import read_head
from dgpo_cli.viewing.charts import COLORS

_GENERATOR = "dgpo report"
_MARKS = (f'name="generator" content="{_GENERATOR}"'.encode(), b"<title>dgpo report")
_HEAD = 1000  # bytes, more than stand before the title


def render(content: Mapping[str, Any], *, title: str = "dgpo report") -> str:
    """`content` is what viewing/report.py gathers; it must be JSON."""
    script = _asset("report.js")
    return _page(content, title, script, policy(script))


def render_watch() -> tuple[str, str]:
    """The page that `dgpo report --watch` serves, empty until its script has asked the server; and its policy."""
    script = _asset("report.js") + _asset("watch.js")
    allowed = policy(script) + "; connect-src 'self'"
    return _page(
        {"runs": [], "charts": [], "curves": [], "questions": []}, "dgpo: runs at work", script, allowed
    ), allowed


def is_page(file: Path) -> bool:
    """Whether a file is such a page, also of an earlier version."""
    head = read_head(file, _HEAD)
    return head.startswith(b"<!doctype html>") and any(mark in head for mark in _MARKS)


def policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _page(content: Mapping[str, Any], title: str, script: str, allowed: str) -> str:
    return Template(_asset("report.html")).substitute(
        generator=_GENERATOR,
        policy=html.escape(allowed),
        title=html.escape(title),
        style=_asset("report.css"),
        content=embed({**content, "colors": COLORS}),
        script=script,
    )


def _asset(name: str) -> str:
    return files("dgpo_cli.viewing").joinpath("page", name).read_text(encoding="utf-8")


def embed(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, so neither `</script>` nor `<!--` can occur.

    NaN and infinities are no JSON; nothing that is embedded holds them.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
