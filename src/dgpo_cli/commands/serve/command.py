"""`dgpo serve`: an agent, or an index, for people, other programs and machines, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag, choose_index
from dgpo_cli.commands.common.search_environment import TOKEN_VARIABLE, require_token_beyond_loopback, server_token
from dgpo_cli.commands.common.served import ModelNameOption, ModelUrlOption
from dgpo_cli.commands.serve.agent import agent_server, choose_agent
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.retrieval.open import OpenIndex
    from dgpo_cli.serving.agent import AgentServer
    from dgpo_cli.serving.metrics import Metrics
    from dgpo_cli.serving.probe import Probe

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="Alias, hub id, folder or run that answers; without one the index alone is served."),
    ] = None,
    model_url: ModelUrlOption = None,
    model_name: ModelNameOption = None,
    index: Annotated[
        str | None,
        typer.Option(help="Index folder, with --model also a server; the current one by default.", show_default=False),
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
    """Serve an agent by OpenAI's protocol, with a page to talk with it, or an index by Search-R1's; until Ctrl-C.

    With --model, the page is at the address itself, and any OpenAI client finds the agent at `/v1`: it searches by
    itself, its thoughts and searches are reasoning, its passages annotations. `POST /retrieve` searches the index, for
    Search-R1, verl, SkyRL, and `dgpo` with `--index http://HOST:PORT`. `/health` and `/metrics` (Prometheus) tell how
    it does. With --model-url another program runs the model. With --json the object is printed when connections are
    accepted.

    Examples: `dgpo serve --model dgpo-qwen-0.5b` · `dgpo serve --index indexes/wiki --host 0.0.0.0 --token-file FILE`
    """
    from dgpo_cli.core.config import apply_options, parse_options
    from dgpo_cli.core.extras import require
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.retrieval.registry import is_server

    for module in ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
        require(module, "serve", "`dgpo serve`")
    from dgpo_cli.serving import run
    from dgpo_cli.serving.app import SearchServer
    from dgpo_cli.serving.batcher import Batcher
    from dgpo_cli.serving.door import Door
    from dgpo_cli.serving.metrics import Metrics
    from dgpo_cli.serving.settings import ServeSettings

    console = Console(json_output=json, quiet=quiet)
    settings = apply_options(ServeSettings, parse_options(options or ()))
    answers = any(given is not None for given in (model, model_url, model_name))
    if not answers and settings.agents_own:
        raise ConfigError(f"{settings.agents_own[0]} has no effect without a model", hint="give --model NAME")
    token, metrics = server_token(token_file), Metrics()
    where = choose_index(console, index)
    if is_server(where) and not answers:
        raise ConfigError(f"{where} is a server already", hint="give --index DIR, or a model that searches there")
    with run.bind(host, port) as bound:
        require_token_beyond_loopback(token, run.is_loopback(bound), host, "search")
        chosen = None
        if answers:
            chosen = choose_agent(console, model, where, settings, device or "auto", model_url, model_name)
        opened = open_index(where, device=device or "auto", rerank=settings.rerank)
        door = Door(settings, token, (*_LOOPBACK_NAMES, host.lower()))
        batcher = Batcher(opened.retriever, settings, metrics)
        agent = None
        if chosen is not None:
            agent = agent_server(console, chosen, where, opened.retriever, batcher, door, settings, metrics)
        about = _about(opened)
        server = SearchServer(batcher, settings, metrics, about=about, door=door, probe=_probe(opened), agent=agent)
        place = run.address(bound)

        def ready() -> None:
            secret = "; clients must send the token" if token is not None else ""
            passages = "" if opened.manifest is None else f" ({counted(opened.manifest.passages, 'passage')})"
            agents = "" if agent is None else f"{agent.name}, which searches "
            console.info(f"serving {agents}{where}{passages} on {place}{secret}; Ctrl-C stops")
            if agent is not None:
                console.info(f"talk with it in a browser: {place}; OpenAI clients: {place}/v1")
            console.result({"url": place, "index": where, **about} | ({} if agent is None else {"model": agent.name}))

        run.serve(server.app(), bound, settings, ready=ready, asker=None if agent is None else agent.asker)
    console.info(_stopped(metrics, agent))


def _stopped(metrics: Metrics, agent: AgentServer | None) -> str:
    requests, errors = metrics.total("dgpo_requests_total"), metrics.total("dgpo_request_errors_total")
    line = f"stopped after {counted(requests, 'request')}, {errors:,} of them errors"
    if agent is None:
        return line
    questions, failed = metrics.total("dgpo_questions_total"), metrics.total("dgpo_question_errors_total")
    return f"{line}; {counted(questions, 'question')}, {failed:,} of them errors"


def _probe(opened: OpenIndex) -> Probe | None:
    """What lies elsewhere can go away while its folder is whole; asking costs one call of a server."""
    from functools import partial

    from dgpo_cli.retrieval.open import check_index
    from dgpo_cli.serving.probe import Probe

    elsewhere = opened.manifest is None or opened.manifest.retriever == "milvus"
    return Probe("the index", partial(check_index, opened.location)) if elsewhere else None


def _about(opened: OpenIndex) -> dict[str, Any]:
    if opened.manifest is None:
        return {"retriever": "server", "passages": None, "digest": opened.digest}
    return {
        "retriever": opened.manifest.retriever,
        "passages": opened.manifest.passages,
        "digest": opened.digest,
    }
