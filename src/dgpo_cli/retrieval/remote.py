"""Client of a retrieval server that speaks Search-R1's protocol: POST /retrieve with queries, topk, return_scores."""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.errors import RetrievalError

_TRY_AGAIN = (408, 425, 429)  # besides 5xx; any other status says that the request itself is wrong
_QUOTED = 200  # characters of a server's own message


class RemoteRetriever:
    """Tries `attempts` times with growing pauses, then raises RetrievalError; a failure never becomes text."""

    def __init__(self, url: str, *, timeout_s: float = 30.0, attempts: int = 4, pause_s: float = 0.5) -> None:
        self._url = url.rstrip("/")
        if not self._url.endswith("/retrieve"):
            self._url += "/retrieve"
        self._timeout_s, self._attempts, self._pause_s = timeout_s, attempts, pause_s
        # A proxy of the environment cannot reach this machine's own addresses.
        proxies = [urllib.request.ProxyHandler({})] if _is_loopback(self._url) else []
        self._opener = urllib.request.build_opener(*proxies)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        results: list[list[Hit]] = [[] for _ in queries]
        asked = [place for place, query in enumerate(queries) if query.strip()]
        if not asked:
            return results
        reply = self._post({"queries": [queries[place] for place in asked], "topk": k, "return_scores": True})
        rows = reply.get("result")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise self._refuse("gave a reply without a list of lists in `result`")
        if len(rows) != len(asked):
            raise self._refuse(f"answered {len(rows)} of {len(asked)} queries")
        for place, row in zip(asked, rows, strict=True):
            results[place] = [self._hit(item, rank) for rank, item in enumerate(row[:k], start=1)]
        return results

    def _post(self, question: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._url, data=json.dumps(question).encode(), headers={"Content-Type": "application/json"}
        )
        problem = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    reply = json.loads(response.read())
                if isinstance(reply, dict):
                    return reply
                problem = f"a {type(reply).__name__} instead of a JSON object"
            except urllib.error.HTTPError as error:
                said = error.read(_QUOTED).decode(errors="replace")
                problem = f"HTTP {error.code} {error.reason} {said}".strip()
                if error.code < 500 and error.code not in _TRY_AGAIN:
                    raise self._refuse(f"refused the request: {problem}") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = str(error) or type(error).__name__
        raise RetrievalError(
            f"{self._url} failed {self._attempts} times, the last time with: {problem}",
            hint="start the server, or give an index folder: --index DIR",
        )

    def _hit(self, item: Any, rank: int) -> Hit:
        """Both reply shapes: {"document": {...}, "score": x}, and the bare document, whose score is unknown (0)."""
        scored = isinstance(item, dict) and isinstance(item.get("document"), dict)
        document = item["document"] if scored else item
        score = item.get("score") if scored else 0.0
        if not isinstance(document, dict) or isinstance(score, bool) or not isinstance(score, int | float):
            raise self._refuse(f"gave a hit of another form: {str(item)[:_QUOTED]}")
        if not math.isfinite(score):
            raise self._refuse(f"gave a score of {score}")
        identity = str(document.get("id", ""))
        if isinstance(document.get("contents"), str):
            passage = Passage(identity, document["contents"])
        elif isinstance(document.get("title"), str) and isinstance(document.get("text"), str):
            passage = Passage.from_title(identity, " ".join(document["title"].split()), document["text"])
        else:
            raise self._refuse(f"gave a document without contents: {str(document)[:_QUOTED]}")
        if any("\ud800" <= character <= "\udfff" for character in passage.id + passage.contents):
            raise self._refuse("gave half of a surrogate pair, which JSON allows and no text holds")
        return Hit(passage, float(score), rank)

    def _refuse(self, what: str) -> RetrievalError:
        return RetrievalError(f"{self._url} {what}", hint="the server must speak Search-R1's /retrieve protocol")


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
