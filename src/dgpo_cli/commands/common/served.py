"""`--model-url`: a model behind a server answers, with the tokenizer and the agent text that `--model` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.options import choose
from dgpo_cli.commands.common.search_environment import sendable_token
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.core.device import Precision
    from dgpo_cli.engine.turnwise.model_server import ModelServer
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import LoadedModel
    from dgpo_cli.serving.settings import ServeSettings
    from dgpo_cli.training.settings import AskSettings

KEY_VARIABLE = "DGPO_MODEL_KEY"

ModelUrlOption = Annotated[
    str | None,
    typer.Option(
        help="Server that speaks OpenAI's /v1/completions and has the model; --model then names its tokenizer and text."
    ),
]
ModelNameOption = Annotated[str | None, typer.Option(help="Model of --model-url; its only one by default.")]


def model_server(
    console: Console, url: str | None, name: str | None, asked: AskSettings | ServeSettings
) -> ModelServer | None:
    """What --model-url and --model-name lead to; None without them. Raises ConfigError or ModelError."""
    from dgpo_cli.engine.turnwise.model_server import MODEL, ModelServerAccess, choose_model

    if url is None:
        if name is not None or asked.server != ModelServerAccess():
            flag = "-o server" if name is None else "--model-name"
            raise ConfigError(
                f"{flag} has no effect without --model-url", hint="give the server's address, or leave it out"
            )
        return None
    if asked.precision != "auto":
        raise ConfigError("precision is that of a model that is loaded here", hint="leave it out with --model-url")
    value = os.environ.get(KEY_VARIABLE)
    key = sendable_token(value, KEY_VARIABLE, hint="give the key that the server asks for") if value else None
    server = choose_model(url, name, key, asked.server, MODEL)
    console.info(f"model: {server.model} at {server.url}")
    return server


def choose_model(console: Console, given: str | None) -> str:
    """The model that answers: given, or the last that was made here. Raises ConfigError without one."""
    return choose(console, "model", given, hint="give --model NAME, or train one: `dgpo quickstart`, `dgpo rl`")


def loaded_to_ask(console: Console, model: str, device: str, precision: Precision) -> tuple[LoadedModel, Codec]:
    """Weights and text of a model that answers; one that was never trained to search is told. Raises DgpoError."""
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.devices import load_frozen

    loaded = load_frozen(model, device=device, precision=precision)
    if loaded.raw is not None:
        console.warn(loaded.raw)
    return loaded, Codec(loaded.tokenizer, loaded.protocol)


def codec_to_ask(console: Console, model: str) -> Codec:
    """Text of a model that a server runs; one that was never trained to search is told."""
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_tokenizer, untrained
    from dgpo_cli.models.sources import load_protocol, resolve

    source = resolve(model)
    protocol, trained = load_protocol(source)
    if not trained:
        console.warn(untrained(model))
    return Codec(load_tokenizer(source), protocol)


def agent_maker(
    console: Console,
    model: str,
    index: str,
    settings: RolloutSettings,
    asked: AskSettings,
    *,
    seed: int,
    device: str,
    server: ModelServer | None = None,
) -> Callable[[], Agent]:
    """Makes agents of `model`, or of what `server` has with the tokenizer and agent text of `model`.

    The index and the model are opened once, here; an agent has an engine of its own, in which nothing is under way.
    """
    from dgpo_cli.planning.checks import check_chat
    from dgpo_cli.retrieval.open import check_index, open_index

    check_index(index)
    # Before a library that computes is imported.
    check_chat(model, settings, device=device, precision=asked.precision, loaded=server is None)

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.engine.turnwise.opening import served_engine

    retriever = open_index(index, device=device, rerank=asked.rerank).retriever
    if server is not None:
        codec = codec_to_ask(console, model)

        def served() -> Agent:
            engine, _ = served_engine(server, codec, asked.server, max_tokens=settings.max_tokens, tokenizer=model)
            return Agent(engine, codec, retriever, settings, seed=seed)

        return served
    loaded, codec = loaded_to_ask(console, model, device, asked.precision)
    return lambda: Agent.of(loaded.model, codec, retriever, settings, seed=seed)
