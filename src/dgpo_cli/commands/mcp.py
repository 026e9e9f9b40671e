"""`dgpo mcp`: an index, and an agent that searches it, as tools for other assistants."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli import __version__
from dgpo_cli.commands.common.options import DeviceOption, QuietFlag, choose_index
from dgpo_cli.commands.common.search_environment import TOKEN_VARIABLE, require_token_beyond_loopback, server_token
from dgpo_cli.commands.common.served import ModelNameOption, ModelUrlOption, agent_maker, choose_model, model_server
from dgpo_cli.commands.common.trained import AskOption, ask_options, asking_rollout
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.serving.mcp_tools import Tools


def mcp(
    index: Annotated[
        str | None, typer.Option(help="Index folder or server address; the current one by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run that answers; without one there is no tool `ask`.")
    ] = None,
    model_url: ModelUrlOption = None,
    model_name: ModelNameOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=50, help="Passages of a search by default.")] = 5,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Answer over HTTP instead of standard input; 0 takes a free one."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="With --port: address to listen on; beyond this machine only with a token.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"With --port: file with the token that clients must send; else ${TOKEN_VARIABLE}."),
    ] = None,
    device: DeviceOption = None,
    options: AskOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Offer an index as tools of the Model Context Protocol: `search`, and with a model `ask`.

    Without --port it speaks on standard input and output, as the programs expect that start it by themselves. Every
    question is an episode of its own; questions are answered one after the other.

    Examples: `dgpo mcp --index indexes/wiki` · `dgpo mcp --model rl-0003 --port 8010 --token-file token.txt`
    """
    from dgpo_cli.core.extras import require

    require("mcp", "mcp", "`dgpo mcp`")
    for module in () if port is None else ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
        require(module, "serve", "`dgpo mcp --port`")
    if port is None and token_file is not None:
        raise ConfigError("--token-file has no effect without --port", hint="give --port, or leave it out")
    console = Console(json_output=port is None, quiet=quiet)  # standard output belongs to the protocol
    where = choose_index(console, index)
    tools = _tools(console, where, model, model_url, model_name, top_k, device or "auto", options)
    if port is None:
        from dgpo_cli.serving.mcp_tools import serve_stdio, server_of

        waits = " for a client; programs that know MCP start this command by themselves" if sys.stdin.isatty() else ""
        console.info(f"{where}: waiting on standard input{waits}; Ctrl-C stops")
        serve_stdio(server_of(tools, __version__))
        return
    _serve_http(console, tools, where, host, port, server_token(token_file))


def _tools(
    console: Console,
    where: str,
    model: str | None,
    url: str | None,
    name: str | None,
    top_k: int,
    device: str,
    options: list[str] | None,
) -> Tools:
    from dgpo_cli.retrieval.open import open_index

    given, asked = ask_options(options)
    server = model_server(console, url, name, asked)
    if model is None and server is None:
        from dgpo_cli.serving.mcp_tools import Tools

        if given:
            raise ConfigError("-o rollout has no effect without a model", hint="give --model NAME")
        return Tools(open_index(where, device=device, rerank=asked.rerank).retriever, top_k=top_k)
    chosen = choose_model(console, model)
    settings = asking_rollout(console, given, chosen, wave=1, rerank=asked.rerank)
    make = agent_maker(console, chosen, where, settings, asked, seed=0, device=device, server=server)
    from dgpo_cli.serving.mcp_tools import Tools

    return Tools(make().retriever, make, top_k=top_k)


def _serve_http(console: Console, tools: Tools, where: str, host: str, port: int, token: str | None) -> None:
    from dgpo_cli.serving import run
    from dgpo_cli.serving.mcp_tools import http_app, server_of
    from dgpo_cli.serving.settings import ServeSettings

    with run.bind(host, port) as bound:
        require_token_beyond_loopback(token, run.is_loopback(bound), host, "ask")
        app = http_app(server_of(tools, __version__), host, token)
        place = f"{run.address(bound)}/mcp"
        run.serve(app, bound, ServeSettings(), ready=lambda: console.info(f"{where} on {place}; Ctrl-C stops"))
