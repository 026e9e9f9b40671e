"""`dgpo serve`: an index for other programs and machines, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag, choose_index
from dgpo_cli.commands.common.search_environment import TOKEN_VARIABLE, search_token, sendable_token
from dgpo_cli.console import Console
from dgpo_cli.core.untrusted import LARGEST_RECORD, read_bytes
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dgpo_cli.retrieval.open import OpenIndex
    from dgpo_cli.serving.metrics import Metrics
    from dgpo_cli.serving.settings import ServeSettings

_LEAST_TOKEN = 16  # characters
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def serve(
    index: Annotated[
        str | None, typer.Option(help="Index folder; the current one by default.", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the token that clients must send; else ${TOKEN_VARIABLE}.", show_default=False),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--set", metavar="NAME=VALUE", help="A limit or size, e.g. -o max_topk=50. An unknown one lists all."
        ),
    ] = None,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Serve an index over HTTP with Search-R1's protocol, until Ctrl-C.

    `POST /retrieve` takes `queries`, `topk` and `return_scores`; `/health` and `/metrics` (Prometheus) tell how it
    does. Search-R1, verl and SkyRL use it as it is, `dgpo` with `--index http://HOST:PORT`. With --json the object is
    printed when connections are accepted.

    Examples: `dgpo serve` · `dgpo serve --index indexes/wiki --host 0.0.0.0 --token-file token.txt`
    """
    from dgpo_cli.core.config import apply_options, parse_options
    from dgpo_cli.core.extras import require
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.retrieval.registry import is_server

    for module in ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
        require(module, "serve", "`dgpo serve`")
    from dgpo_cli.serving import run
    from dgpo_cli.serving.metrics import Metrics
    from dgpo_cli.serving.settings import ServeSettings

    console = Console(json_output=json, quiet=quiet)
    settings = apply_options(ServeSettings, parse_options(options or ()))
    token, metrics = _token(token_file), Metrics()
    where = choose_index(console, index)
    if is_server(where):
        raise ConfigError(f"{where} is a server already", hint="give --index DIR")
    with run.bind(host, port) as bound:
        if token is None and not run.is_loopback(bound):
            raise ConfigError(
                f"without a token only this machine may search, and {host} is open to others",
                hint=f"give --token-file FILE (or set {TOKEN_VARIABLE}), or --host 127.0.0.1",
            )
        opened = open_index(where, device=device or "auto", rerank=settings.rerank)
        about = _about(opened)
        app = _app(opened, settings, metrics, token, about, host)
        place = run.address(bound)

        def ready() -> None:
            secret = "; clients must send the token" if token is not None else ""
            console.info(f"serving {where} ({about['passages']:,} passages) on {place}{secret}; Ctrl-C stops")
            console.result({"url": place, "index": where, **about})

        run.serve(app, bound, settings, ready=ready)
    console.info(
        f"stopped after {metrics.total('dgpo_requests_total'):,} requests, "
        f"{metrics.total('dgpo_request_errors_total'):,} of them errors"
    )


def _app(
    opened: OpenIndex, settings: ServeSettings, metrics: Metrics, token: str | None, about: dict[str, Any], host: str
) -> FastAPI:
    from functools import partial

    from dgpo_cli.retrieval.open import check_index
    from dgpo_cli.serving.app import SearchServer
    from dgpo_cli.serving.batcher import Batcher

    batcher = Batcher(opened.retriever, settings, metrics)
    hosts = (*_LOOPBACK_NAMES, host.lower())
    # Rows in Milvus can go away while the folder is whole; asking costs one call of a server.
    elsewhere = about["retriever"] == "milvus"
    probe = partial(check_index, opened.location) if elsewhere else None
    return SearchServer(batcher, settings, metrics, about=about, token=token, hosts=hosts, probe=probe).app()


def _about(opened: OpenIndex) -> dict[str, Any]:
    assert opened.manifest is not None, "only an index folder is served"
    return {
        "retriever": opened.manifest.retriever,
        "passages": opened.manifest.passages,
        "digest": opened.digest,
    }


def _token(file: Path | None) -> str | None:
    """Raises ConfigError for a token that cannot be sent in a header, or can be guessed, InputError for no file."""
    if file is None:
        token, source = search_token(), TOKEN_VARIABLE
    else:
        # An error of decoding would show a byte of it.
        text = read_bytes(file, LARGEST_RECORD).decode(errors="replace")
        token, source = sendable_token(text, str(file)), str(file)
    if token is not None and len(token) < _LEAST_TOKEN:
        raise ConfigError(
            f"the token of {source} has {len(token)} characters, fewer than {_LEAST_TOKEN} can be guessed",
            hint="make one: python -c 'import secrets; print(secrets.token_hex(32))' > token.txt",
        )
    return token
