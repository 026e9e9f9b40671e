"""The page to talk with an agent: one HTML file that asks nothing but the server that it came from.

Everything that is shown of an answer is set as text. A content security policy stands behind that: it allows the page's
own script and style by their hashes, requests to its own server, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from string import Template


@cache
def chat_page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that it is sent with."""
    assets = files(__package__)
    texts = {name: assets.joinpath(f"chat.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    policy = (
        f"default-src 'none'; script-src {_hash(texts['js'])}; style-src {_hash(texts['css'])}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = Template(texts["html"]).substitute(style=texts["css"], script=texts["js"])
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return page.encode(), headers


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
