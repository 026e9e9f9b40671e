"""The agent that `dgpo serve --model` puts beside an index: its settings, and the model loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.commands.common.examples import example_questions
from dgpo_cli.commands.common.served import choose_model, codec_to_ask, loaded_to_ask, model_server
from dgpo_cli.commands.common.trained import asking_rollout
from dgpo_cli.console import Console

if TYPE_CHECKING:
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.engine.turnwise.model_server import ModelServer
    from dgpo_cli.retrieval.base import Retriever
    from dgpo_cli.serving.agent import AgentServer
    from dgpo_cli.serving.batcher import Batcher
    from dgpo_cli.serving.door import Door
    from dgpo_cli.serving.metrics import Metrics
    from dgpo_cli.serving.settings import ServeSettings

_EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that passed what can be checked before it is loaded."""

    model: str
    name: str  # for clients
    rollout: RolloutSettings
    device: str
    server: ModelServer | None  # that runs it


def choose_agent(
    console: Console,
    model: str | None,
    index: str,
    settings: ServeSettings,
    device: str,
    url: str | None,
    url_name: str | None,
) -> Chosen:
    """Raises DgpoError for a model or an index that cannot be used, or episodes that do not fit into memory."""
    from dataclasses import replace

    from dgpo_cli.planning.checks import check_chat
    from dgpo_cli.retrieval.open import check_index

    server = model_server(console, url, url_name, settings)
    chosen = choose_model(console, model)
    given = {name: value for name, value in asdict(settings.rollout).items() if value is not None}
    rollout = asking_rollout(console, given, chosen, wave=settings.max_episodes, rerank=settings.rerank)
    check_index(index)
    wave = check_chat(
        chosen, rollout, device=device, precision=settings.precision, loaded=server is None,
        given="max_episodes" in settings.agents_own, say=console.info,
    )  # fmt: skip
    return Chosen(chosen, _name(chosen), replace(rollout, wave=wave), device, server)


def _name(model: str) -> str:
    """What clients call it: the name that was given, or of a folder its own; of a run's best weights, the run's."""
    folder = Path(model)
    if not folder.exists():
        return model
    return folder.parent.name if folder.name in ("best", "last") and folder.parent.name else folder.stem or model


def agent_server(
    console: Console,
    chosen: Chosen,
    index: str,
    retriever: Retriever,
    batcher: Batcher,
    door: Door,
    settings: ServeSettings,
    metrics: Metrics,
) -> AgentServer:
    """Loads the model, or asks the server that runs it how it is to be asked."""
    from functools import partial

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.engine.turnwise.model_server import check_served
    from dgpo_cli.engine.turnwise.opening import served_engine
    from dgpo_cli.serving.agent import AgentServer
    from dgpo_cli.serving.probe import Probe
    from dgpo_cli.serving.shared import SharedAgent

    parameters, probe, wake = None, None, None
    if chosen.server is None:
        loaded, codec = loaded_to_ask(console, chosen.model, chosen.device, settings.precision)
        agent = Agent.of(loaded.model, codec, retriever, chosen.rollout)
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    else:
        codec, most = codec_to_ask(console, chosen.model), chosen.rollout.max_tokens
        engine, _ = served_engine(chosen.server, codec, settings.server, max_tokens=most, tokenizer=chosen.model)
        agent = Agent(engine, codec, retriever, chosen.rollout)
        probe, wake = Probe("the model's server", partial(check_served, chosen.server, settings.server)), engine.wake
    about: dict[str, Any] = {
        "parameters": parameters,
        "format": codec.protocol.format,
        "places": chosen.rollout.wave,
        "max_turns": chosen.rollout.max_turns,
        "top_k": chosen.rollout.top_k,
        "max_tokens": agent.engine.capacity,
    }
    asker = SharedAgent(agent, batcher.search, settings.max_questions_waiting, metrics, wake=wake)
    return AgentServer(
        asker, door, settings, metrics, probe=probe,
        name=chosen.name, about=about, examples=example_questions(Path(index).parent, _EXAMPLES),
    )  # fmt: skip
