"""`dgpo chat`: ask a trained agent, and watch it think, search and read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.shared import DeviceOption, JsonFlag, QuietFlag, absolute, choose, choose_index
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError, DgpoError

if TYPE_CHECKING:
    from dgpo_cli.core.types import Trajectory
    from dgpo_cli.pipelines.chat import Chat

HELP = """/help        this list
/trace       the last episode, token for token as the model saw it
/k N         passages per search
/save FILE   all episodes: .jsonl as records, anything else as Markdown
/quit        leave (also Ctrl-C or Ctrl-D at the prompt)"""


def chat(
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run; the last run's best by default.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Index folder or server address; the current one by default.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Passages per search.")] = 3,
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 samples as in training.")] = 0.0,
    max_searches: Annotated[int, typer.Option(help="Turns that may search; one more may only answer.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Talk to a search agent. Every question is an episode of its own; nothing is remembered from the one before.

    On a terminal you see it think, search and read. With questions on standard input, one a line, it prints one line
    with the answer to each; a question without an answer gives an empty line and a warning.

    Examples: `dgpo chat` · `echo "Where was the director of Vertigo born?" | dgpo chat --model dgpo-qwen-0.5b`
    """
    console = Console(json_output=json, quiet=quiet)
    chosen = absolute(
        choose(console, "model", model, hint="give --model NAME, or train one: `dgpo quickstart`, `dgpo rl`")
    )
    where = choose_index(console, index)
    talk = _open(console, chosen, where, top_k, temperature, max_searches, seed, device or "auto")
    if console.interactive and not json:
        _interactive(console, talk)
    elif not _piped(console, talk):
        raise typer.Exit(1)


def _open(
    console: Console, model: str, index: str, top_k: int, temperature: float, max_searches: int, seed: int, device: str
) -> Chat:
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_model
    from dgpo_cli.pipelines.agents import Agent
    from dgpo_cli.pipelines.benchmarks import fit_to_context
    from dgpo_cli.pipelines.chat import Chat
    from dgpo_cli.retrieval.open import open_index
    from dgpo_cli.rollout.settings import RolloutSettings
    from dgpo_cli.train.devices import inference_dtype, training_device

    settings = RolloutSettings(max_turns=max_searches, top_k=top_k, temperature=temperature, seed=seed, wave=1)
    retriever = open_index(index).retriever
    where = training_device(device)
    loaded = load_model(model, device=where, dtype=inference_dtype(where))
    if not loaded.trained_with_protocol:
        console.warn(f"{model} was not trained to search; expect turns without an action")
    codec = Codec(loaded.tokenizer, loaded.protocol)
    return Chat(lambda: fit_to_context(Agent.of(loaded.model, codec, retriever, settings)))


def _interactive(console: Console, talk: Chat) -> None:
    from dgpo_cli.commands.chat_screen import Screen

    console.print(
        "Ask a question; /help lists what else there is. Each question is a fresh episode: the model does not"
    )
    console.print("know what you asked before.")
    screen = Screen(console)
    while True:
        try:
            line = console.ask("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _command(console, talk, line)
            elif line:
                talk.ask(line, screen)
        except KeyboardInterrupt:
            screen.stop()
        except DgpoError as error:
            console.warn(error.message + (f" ({error.hint})" if error.hint else ""))


def _command(console: Console, talk: Chat, line: str) -> None:
    """Raises ConfigError or InputError for what cannot be done; the conversation goes on."""
    name, _, rest = line.partition(" ")
    if name == "/help":
        console.print(HELP)
    elif name == "/trace":
        _trace(console, talk)
    elif name == "/k":
        if not rest.strip().isdecimal():
            raise ConfigError(f"/k {rest.strip()!r} is not a number", hint=f"now {talk.top_k}; write it like /k 5")
        talk.top_k = int(rest)
        console.print(f"{talk.top_k} passages per search")
    elif name == "/save":
        if not rest.strip():
            raise ConfigError("/save needs a file name", hint="write it like /save chat.md")
        talk.save(Path(rest.strip()))
        console.print(f"saved {len(talk.episodes)} episodes to {rest.strip()}")
    else:
        raise ConfigError(f"unknown command {name}", hint="/help lists the commands")


def _trace(console: Console, talk: Chat) -> None:
    from dgpo_cli.commands.chat_screen import visible
    from dgpo_cli.reporting.transcript import parts

    if not talk.episodes:
        raise ConfigError("there is no episode yet", hint="ask a question first")
    for written, text in parts(talk.episodes[-1], talk.agent.codec.decode):
        console.print("the model wrote:" if written else "the model read:", style="bold")
        console.print(visible(text), style="green" if written else "dim")


def _piped(console: Console, talk: Chat) -> bool:
    """One line of output per line of input; whether every question found an answer."""
    from dgpo_cli.reporting.transcript import outcome

    episodes = []
    for line in sys.stdin:
        if not line.strip():
            continue
        episode = talk.ask(line.strip())
        episodes.append(episode)
        if episode.invalid_actions:
            console.warn(f"{line.strip()}: {episode.invalid_actions} turns had no action")
        if episode.answer is None:
            failed = next((f": {call.error}" for call in episode.searches if call.error), "")
            console.warn(f"{line.strip()}: {outcome(episode)}{failed}")
        console.print(" ".join((episode.answer or "").split()))
    console.result({"answers": [_answer(episode) for episode in episodes]})
    return all(episode.answer is not None for episode in episodes)


def _answer(episode: Trajectory) -> dict[str, object]:
    return {
        "question": episode.question.text,
        "answer": episode.answer,
        "stop": episode.stop.value,
        "invalid_actions": episode.invalid_actions,
        "searches": [
            {
                "query": call.query,
                "error": call.error,
                "hits": [{"title": hit.passage.title, "score": hit.score} for hit in call.hits],
            }
            for call in episode.searches
        ],
    }
