"""`dgpo chat`: ask a trained agent, and watch it think, search and read."""

from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.examples import example_questions
from dgpo_cli.commands.common.options import (
    DeviceOption,
    JsonFlag,
    QuietFlag,
    choose_index,
    within_64_bits,
)
from dgpo_cli.commands.common.served import ModelNameOption, ModelUrlOption, agent_maker, choose_model, model_server
from dgpo_cli.commands.common.trained import AskOption, ask_options, asking_rollout
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.errors import InputError

if TYPE_CHECKING:
    from dgpo_cli.core.trajectory import Trajectory
    from dgpo_cli.viewing.chat import Chat


def chat(
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run; the last run's best by default.")
    ] = None,
    model_url: ModelUrlOption = None,
    model_name: ModelNameOption = None,
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
    seed: Annotated[int, typer.Option(callback=within_64_bits, help="Seed of every draw.")] = 0,
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
    console = Console(json_output=json, quiet=quiet)
    chosen = choose_model(console, model)
    where = choose_index(console, index)
    given, asked = ask_options(options, top_k=top_k, max_turns=max_searches)
    server = model_server(console, model_url, model_name, asked)
    settings = asking_rollout(console, given, chosen, wave=1, rerank=asked.rerank, temperature=temperature)
    make = agent_maker(console, chosen, where, settings, asked, seed=seed, device=device or "auto", server=server)

    from dgpo_cli.viewing.chat import Chat  # after the checks: it imports libraries that compute

    talk = Chat(make)
    if console.interactive and not json:
        _converse(console, talk, Path(where).parent, chosen)
    elif not _piped(console, talk):
        raise typer.Exit(1)


def _converse(console: Console, talk: Chat, project: Path, model: str) -> None:
    """With a person. Everything that only a terminal needs is imported here."""
    from prompt_toolkit.utils import is_dumb_terminal

    from dgpo_cli.commands.chat.history import kept_history
    from dgpo_cli.commands.chat.prompt import MARK, asking, unheard_keyboard
    from dgpo_cli.commands.chat.talk import COMMANDS, converse
    from dgpo_cli.models.sources import search_limits

    commands = {name: argument for name, (argument, _) in COMMANDS.items()}
    dumb = is_dumb_terminal()  # it shows what moves the cursor, and the line that was typed stays
    ask = partial(console.ask, MARK) if dumb else asking(kept_history(console), commands)
    examples = example_questions(project, 3)
    converse(console, talk, ask, unheard_keyboard, examples, search_limits(model), repeats=not dumb)


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
                console.warn(f"{question}: {counted(episode.invalid_actions, 'turn')} had no action")
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
