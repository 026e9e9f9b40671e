"""`dgpo chat`: ask a trained agent, and watch it think, search and read."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.examples import example_questions
from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag, choose, choose_index
from dgpo_cli.commands.common.trained import AskOption, ask_options, trained_limits
from dgpo_cli.console import Console
from dgpo_cli.errors import InputError

if TYPE_CHECKING:
    from dgpo_cli.core.trajectory import Trajectory
    from dgpo_cli.training.settings import AskSettings
    from dgpo_cli.viewing.chat import Chat


def chat(
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run; the last run's best by default.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Index folder or server address; the current one by default.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Passages per search; as the model was trained by default.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 samples as in training.")] = 0.0,
    max_searches: Annotated[
        int | None, typer.Option(help="Turns that may search, one more may only answer; as trained by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: DeviceOption = None,
    options: AskOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Talk to a search agent. Every question is an episode of its own; nothing is remembered from the one before.

    On a terminal you see it think, search and read; /help lists what else there is. With questions on standard input,
    one a line, it prints one line with the answer to each; a question without an answer gives an empty line and a
    warning.

    Examples: `dgpo chat` · `echo "Where was the director of Vertigo born?" | dgpo chat --model dgpo-qwen-0.5b`
    """
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.models.sources import search_limits

    console = Console(json_output=json, quiet=quiet)
    chosen = choose(console, "model", model, hint="give --model NAME, or train one: `dgpo quickstart`, `dgpo rl`")
    where = choose_index(console, index)
    given, asked = ask_options(options, top_k=top_k, max_turns=max_searches)
    limits = trained_limits(console, given, search_limits(chosen), chosen, RolloutSettings()) | given
    talk = _open(console, chosen, where, limits, temperature, seed, device or "auto", asked)
    if console.interactive and not json:
        _converse(console, talk, Path(where).parent)
    elif not _piped(console, talk):
        raise typer.Exit(1)


def _open(
    console: Console,
    model: str,
    index: str,
    limits: dict[str, int],
    temperature: float,
    seed: int,
    device: str,
    asked: AskSettings,
) -> Chat:
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.planning.checks import check_chat
    from dgpo_cli.retrieval.open import check_index, open_index

    settings = RolloutSettings(**limits, temperature=temperature, wave=1, stop_repeats=True)
    check_index(index)
    check_chat(model, settings, device=device, precision=asked.precision)  # before a library that computes is imported

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.devices import inference_dtype, training_device
    from dgpo_cli.models.load import load_model
    from dgpo_cli.viewing.chat import Chat

    retriever = open_index(index, device=device, rerank=asked.rerank).retriever
    where = training_device(device)
    loaded = load_model(model, device=where, dtype=inference_dtype(where, model, asked.precision))
    if loaded.raw is not None:
        console.warn(loaded.raw)
    codec = Codec(loaded.tokenizer, loaded.protocol)
    return Chat(lambda: Agent.of(loaded.model, codec, retriever, settings, seed=seed))


def _converse(console: Console, talk: Chat, project: Path) -> None:
    """With a person. Everything that only a terminal needs is imported here."""
    from dgpo_cli.commands.chat.history import kept_history
    from dgpo_cli.commands.chat.prompt import asking, unheard_keyboard
    from dgpo_cli.commands.chat.talk import COMMANDS, converse

    ask = asking(kept_history(console), {name: argument for name, (argument, _) in COMMANDS.items()})
    converse(console, talk, ask, unheard_keyboard, example_questions(project, 3))


def _piped(console: Console, talk: Chat) -> bool:
    """One line of output per line of input; whether every question found an answer."""
    from dgpo_cli.agent.transcript import outcome
    from dgpo_cli.core.untrusted import questions_in

    episodes, unread = [], []
    # What has no bytes beneath it is text already, of whoever put it in the place of standard input.
    stream = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())
    try:
        for number, question in questions_in(stream):
            if isinstance(question, InputError):
                unread.append({"line": number, "problem": question.message})
                console.warn(question.message)
                console.print()
                continue
            episode = talk.ask(question)
            episodes.append(episode)
            if episode.invalid_actions:
                console.warn(f"{question}: {episode.invalid_actions} turns had no action")
            if episode.answer is None:
                failed = next((f": {call.error}" for call in episode.searches if call.error), "")
                console.warn(f"{question}: {outcome(episode)}{failed}")
            console.print(" ".join((episode.answer or "").split()))
    finally:  # whatever ends it early, the answers so far are kept
        console.result({"answers": [_answer(episode) for episode in episodes], "unread": unread})
    return not unread and all(episode.answer is not None for episode in episodes)


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
