"""A server of models that speaks OpenAI's protocol: its address, its models, and requests with patience."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.config import setting
from dgpo_cli.core.http import JsonClient, RequestFailed, RequestRefused, server_address
from dgpo_cli.errors import ConfigError, ModelError

_LISTED = schema.record({"id": schema.text(empty=False)})
_LENGTH = schema.whole(1)
_LONGEST_PAUSE = 60.0  # seconds, ours; a server may ask for more


@dataclass(frozen=True, slots=True)
class ModelServerAccess:
    """Access to a model server; the defaults are ours."""

    concurrency: int = setting(64, "requests in flight at once")
    timeout_s: float = setting(600.0, "for a connection, and for a reply once the request was sent")
    attempts: int = setting(6, "of every request")
    pause_s: float = setting(
        1.0, "before the second attempt; doubled before each further one, and shortened by up to half"
    )

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout_s", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"server.{name} = {getattr(self, name)} is too small", hint="give 1 or more")


@dataclass(frozen=True, slots=True)
class Asked:
    """Names under which a user chooses a server: two flags, and an environment variable for the key."""

    url: str
    name: str
    key: str


TEACHER = Asked("--teacher-url", "--teacher-name", "DGPO_TEACHER_KEY")
MODEL = Asked("--model-url", "--model-name", "DGPO_MODEL_KEY")


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A server's address up to /v1, the name of a model there, and the key, which no run records."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    asked: Asked = TEACHER


def base_url(location: str) -> str:
    """ "http://host:8000" to "http://host:8000/v1"; a path that is given stays. Raises ConfigError."""
    text = location.strip().rstrip("/").removesuffix("/completions")
    parsed = server_address(text)
    if parsed is None or parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise ConfigError(
            f"{location.partition('@')[2] or location!r} is no address of a model server",
            hint="write it like http://host:8000/v1, without a key in it",
        )
    return text if parsed.path.strip("/") else f"{text}/v1"


def served_models(server: ModelServer, access: ModelServerAccess) -> list[dict[str, Any]]:
    """The models that the server lists at /models; none if it has no list. Raises ModelError where nothing answers."""
    asker = Asker(server, access)
    try:
        reply = asker.ask("/models", None, patient=False)
    except RequestRefused as error:
        if error.status == 404:
            return []
        raise asker.explained(error) from error
    listed = reply.get("data")
    return [row for row in listed if not _LISTED.fault(row, "")] if isinstance(listed, list) else []


def check_served(server: ModelServer, access: ModelServerAccess) -> None:
    """Raises ModelError where nothing answers; a server that has no list of its models answers too."""
    with suppress(RequestRefused):
        Asker(server, access).ask("/models", None, patient=False)


def context_length(server: ModelServer, access: ModelServerAccess) -> int | None:
    """Tokens that one episode may have there, if the server reports it (vLLM and llama.cpp do)."""
    try:
        rows = served_models(server, access)
    except ModelError:  # some servers complete texts and fail to list their models
        return None
    lengths = [length for row in rows if row["id"] == server.model for length in _lengths(row)]
    return next((length for length in lengths if not _LENGTH.fault(length, "")), None)


def _lengths(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The lengths that vLLM and llama.cpp report, the latter for one of its slots."""
    meta = row.get("meta")
    return row.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None


def choose_model(
    url: str, name: str | None, key: str | None, access: ModelServerAccess, asked: Asked = TEACHER
) -> ModelServer:
    """The model of that name, else the only one that the server lists. Raises ConfigError if that leaves it open."""
    server = ModelServer(base_url(url), name or "", key, asked)
    if name is not None:
        return server  # a server may know more names than it lists
    names: list[str] = [row["id"] for row in served_models(server, access)]
    if len(names) != 1:
        listed = f"lists {len(names)} models: {', '.join(names[:10])}" if names else "lists no model"
        raise ConfigError(f"{server.url} {listed}", hint=f"name one: {asked.name} MODEL")
    return replace(server, model=names[0])


class Asker:
    """Requests with patience, for several threads."""

    def __init__(self, server: ModelServer, access: ModelServerAccess) -> None:
        self._server, self._access = server, access
        self._client = JsonClient(server.url, token=server.key, timeout_s=access.timeout_s)
        self._numbers = itertools.count()
        self._stopping = False

    def give_up(self) -> None:
        """A request has failed for good, so the others need no further attempt."""
        self._stopping = True

    def go_on(self) -> None:
        """Somebody asks again after a failure."""
        self._stopping = False

    def ask(self, path: str, body: Mapping[str, Any] | None, *, patient: bool = True) -> dict[str, Any]:
        """Raises Refused, or ModelError after the last attempt; not `patient`, before long work, after the second."""
        attempts = self._access.attempts if patient else min(2, self._access.attempts)
        jitter = random.Random(f"pauses {next(self._numbers)}")  # requests that failed together come back apart
        problem = ""
        for attempt in range(attempts):
            try:
                return self._client.ask(f"{self._server.url}{path}", body)[1]
            except RequestFailed as error:
                problem = str(error)
                pause = self._access.pause_s * 2**attempt * jitter.uniform(0.5, 1.0)
                if attempt + 1 < attempts and not self._stopping:
                    time.sleep(min(max(pause, error.wait_s), _LONGEST_PAUSE))
            if self._stopping:
                break
        raise ModelError(
            f"{self._server.url}{path} failed {attempts} times, the last time with: {problem}",
            hint=f"start the model server or correct {self._server.asked.url}; the same command then goes on",
        )

    def explained(self, error: RequestRefused) -> ModelError:
        url, model, asked = self._server.url, self._server.model, self._server.asked
        if error.status in (401, 403):
            hint = f"put the server's key into the environment variable {asked.key}"
        elif error.status in (404, 405) and "model" not in str(error).lower():
            hint = f"the server must offer /v1/completions (chat completions alone are not enough); check {asked.url}"
        elif error.status is None:
            hint = "the server must speak OpenAI's /v1/completions"
        else:
            hint = f"if it knows no model {model!r}, name one with {asked.name}; {url}/models may list them"
        return ModelError(f"{url} {error}", hint=hint)

    def unusable(self, what: str) -> ModelError:
        return ModelError(f"{self._server.url} gave {what}", hint="the server must speak OpenAI's /v1/completions")
