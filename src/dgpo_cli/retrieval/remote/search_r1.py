"""Client of retrieval servers that speak Search-R1's protocol: POST /retrieve with queries, topk, return_scores.

Several servers of one index share the work: each search goes to the next one, and where one fails the others are asked.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from dgpo_cli.core.http import JsonClient, RequestFailed, RequestRefused, server_address
from dgpo_cli.core.schema import Mismatch, either, maybe, number, record, require, text, whole
from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.core.untrusted import LONGEST_PASSAGE
from dgpo_cli.errors import ConfigError, RetrievalError

INDEX_HEADER = "Dgpo-Index"  # what `dgpo serve` serves; other servers do not send it
_QUOTED = 200  # characters of a server's own message
_DOCUMENT = record(
    {},
    {
        "id": maybe(either(text(), whole())),
        "contents": maybe(text()),
        "title": maybe(text()),
        "text": maybe(text()),
    },
)


@dataclass(frozen=True, slots=True)
class SearchServerAccess:
    """How servers are asked; the defaults are ours."""

    token: str | None = field(default=None, repr=False)  # sent as `Authorization: Bearer TOKEN`
    timeout_s: float = 30.0  # for a connection, and for a whole reply
    attempts: int = 4  # of every server
    pause_s: float = 0.5  # before the second attempt; doubled before each further one, and shortened by up to half
    rest_s: float = 30.0  # seconds for which a server that failed is asked last
    seed: int = 0  # of the shortening, which keeps clients that failed together from coming back together


_access = SearchServerAccess()


def use_access(access: SearchServerAccess) -> None:
    """Set the access of all later clients. For the command line, which alone knows tokens: no run records one."""
    global _access
    _access = access


def split_urls(location: str) -> list[str]:
    """ "http://a,http://b" to the addresses of their /retrieve. Raises ConfigError for anything but http(s)."""
    urls = []
    for part in filter(None, (part.strip().rstrip("/") for part in location.split(","))):
        parsed = server_address(part)
        if parsed is None:
            raise ConfigError(f"{part!r} is no address of a search server", hint="write it like http://host:8000")
        urls.append(part if parsed.path.endswith("/retrieve") else f"{part}/retrieve")
    return list(dict.fromkeys(urls))


class RemoteRetriever:
    """Asks until every server failed `attempts` times, then raises RetrievalError; a failure never becomes text."""

    def __init__(self, location: str, access: SearchServerAccess | None = None) -> None:
        """`location` is one address, or several of the same index, comma-separated."""
        self._urls = split_urls(location)
        self._access = _access if access is None else access
        self._jitter = random.Random(f"pauses {self._access.seed}")
        self._clients = {
            url: JsonClient(url, token=self._access.token, timeout_s=self._access.timeout_s) for url in self._urls
        }
        self._next = 0
        self._resting = dict.fromkeys(self._urls, -math.inf)  # until when
        self._served: tuple[str, str] | None = None  # the first server that named its index, and the name

    @classmethod
    def open(cls, location: str, /) -> Self:
        return cls(location)

    def check(self) -> None:
        access = self._access
        quick = replace(access, timeout_s=min(access.timeout_s, 10.0), attempts=min(access.attempts, 2))
        RemoteRetriever(",".join(self._urls), quick).search(["are you there"], 1)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        results: list[list[Hit]] = [[] for _ in queries]
        asked = [place for place, query in enumerate(queries) if query.strip()]
        if not asked:
            return results
        url, rows = self._ask([queries[place] for place in asked], k)
        if len(rows) != len(asked):
            raise _refuse(url, f"answered {len(rows)} of {len(asked)} queries")
        for place, row in zip(asked, rows, strict=True):
            results[place] = [_hit(url, item, rank) for rank, item in enumerate(row[:k], start=1)]
        return results

    def _ask(self, queries: Sequence[str], k: int) -> tuple[str, list[list[Any]]]:
        """The first reply, a list of results by query, and the server that gave it."""
        access, problem, url = self._access, "", self._urls[0]
        for attempt in range(access.attempts):
            if attempt:
                time.sleep(access.pause_s * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.0))
            for url in self._in_turn():
                try:
                    return url, self._post(url, queries, k)
                except RequestFailed as error:
                    problem = str(error)
                    self._resting[url] = time.monotonic() + access.rest_s
        several = f" (the last of {len(self._urls)} servers)" if len(self._urls) > 1 else ""
        raise RetrievalError(
            f"{url}{several} failed {access.attempts} times, the last time with: {problem}",
            hint="start the server, or give an index folder: --index DIR",
        )

    def _in_turn(self) -> list[str]:
        """All servers, beginning with the next one; those that failed a moment ago last."""
        start, self._next = self._next, (self._next + 1) % len(self._urls)
        now = time.monotonic()
        return sorted(self._urls[start:] + self._urls[:start], key=lambda url: self._resting[url] > now)

    def _post(self, url: str, queries: Sequence[str], k: int) -> list[list[Any]]:
        """Raises RequestFailed where a retry may help, RetrievalError where it does not."""
        try:
            headers, reply = self._clients[url].ask(url, {"queries": list(queries), "topk": k, "return_scores": True})
        except RequestRefused as error:
            raise _refuse(url, str(error), error.status) from error
        self._require_same_index(url, headers.get(INDEX_HEADER))
        rows = reply.get("result")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise _refuse(url, "gave a reply without a list of lists in `result`")
        return rows

    def _require_same_index(self, url: str, name: str | None) -> None:
        """Results of two indexes must not mix in one run, whether two servers differ or one was restarted."""
        if name is None:
            return
        if self._served is None:
            self._served = url, name
        first, expected = self._served
        if name != expected:
            raise RetrievalError(
                f"{url} serves another index ({name}) than {first} did before ({expected})",
                hint="give servers of one index, and start the run again if the index was replaced on purpose",
            )


def _hit(url: str, item: Any, rank: int) -> Hit:
    """Both reply shapes: {"document": {...}, "score": x}, and the bare document, whose score is unknown (0)."""
    scored = isinstance(item, dict) and isinstance(item.get("document"), dict)
    document = item["document"] if scored else item
    score = item.get("score") if scored else 0.0
    for value, kind, what in ((document, _DOCUMENT, "document"), (score, number(), "score")):
        try:
            require(value, kind)
        except Mismatch as problem:
            raise _refuse(url, f"gave a hit of another form: its {what}: {problem}") from None
    identity = str(document.get("id", ""))
    if document.get("contents") is not None:
        passage = Passage(identity, document["contents"])
    elif document.get("title") is not None and document.get("text") is not None:
        passage = Passage.from_title(identity, " ".join(document["title"].split()), document["text"])
    else:
        raise _refuse(url, f"gave a document without contents: {str(document)[:_QUOTED]}")
    if len(passage.contents) > LONGEST_PASSAGE:
        size = f"{len(passage.contents):,} characters, {LONGEST_PASSAGE:,} at most"
        raise _refuse(url, f"gave an oversized passage ({size})")
    return Hit(passage, float(score), rank)


def _refuse(url: str, what: str, status: int | None = None) -> RetrievalError:
    hint = "the server must speak Search-R1's /retrieve protocol"
    if status in (401, 403):
        hint = "put the server's token into the environment variable DGPO_SEARCH_TOKEN"
    return RetrievalError(f"{url} {what}", hint=hint)
