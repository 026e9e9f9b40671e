"""Client of a retrieval server that speaks Search-R1's protocol: POST /retrieve with queries, topk, return_scores."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.errors import RetrievalError


class RemoteRetriever:
    """Tries `attempts` times with growing pauses, then raises RetrievalError; a failure never becomes text."""

    def __init__(self, url: str, *, timeout_s: float = 30.0, attempts: int = 3, pause_s: float = 0.5) -> None:
        self._url = url.rstrip("/")
        if not self._url.endswith("/retrieve"):
            self._url += "/retrieve"
        self._timeout_s, self._attempts, self._pause_s = timeout_s, attempts, pause_s

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not queries:
            return []
        body = json.dumps({"queries": list(queries), "topk": k, "return_scores": True}).encode()
        reply = self._post(body)
        try:
            results = reply["result"]
            parsed = [[_hit(item, rank) for rank, item in enumerate(row, start=1)] for row in results]
        except (KeyError, TypeError) as error:
            raise RetrievalError(f"{self._url} gave a reply of another form", hint="it must speak Search-R1's protocol") from error
        if len(parsed) != len(queries):
            raise RetrievalError(f"{self._url} answered {len(parsed)} of {len(queries)} queries", hint="check the server")
        return parsed

    def _post(self, body: bytes) -> dict[str, Any]:
        request = urllib.request.Request(self._url, data=body, headers={"Content-Type": "application/json"})
        problem = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    reply = json.loads(response.read())
                    if isinstance(reply, dict):
                        return reply
                    problem = "not a JSON object"
            except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
                problem = str(error)
        raise RetrievalError(f"{self._url} failed {self._attempts} times: {problem}", hint="start the server, or give --index DIR")


def _hit(item: dict[str, Any], rank: int) -> Hit:
    """Both reply shapes: {"document": {...}, "score": x}, and the bare document."""
    document = item.get("document", item)
    return Hit(Passage(str(document.get("id", "")), document["contents"]), float(item.get("score", 0.0)), rank)
