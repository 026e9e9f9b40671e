"""A conversation of independent questions: every question is an episode of its own, nothing is carried over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_cli.agent.loop import Listener
from dgpo_cli.agent.transcript import markdown
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.trajectory import Trajectory, write_trajectories
from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent


class Chat:
    """Asks `agent`; a question that did not come to its end leaves nothing behind: the next one gets a new agent."""

    def __init__(self, make_agent: Callable[[], Agent]) -> None:
        self._make_agent = make_agent
        self.agent = make_agent()
        self.episodes: list[Trajectory] = []
        self._underway = False

    @property
    def top_k(self) -> int:
        return self.agent.settings.top_k

    @top_k.setter
    def top_k(self, value: int) -> None:
        """Raises ConfigError for a value below 1."""
        self.agent = self.agent.with_settings(top_k=value)

    def ask(self, text: str, on_event: Listener | None = None) -> Trajectory:
        """The episode of one question. `on_event` gets its events as they happen."""
        question = Question(str(len(self.episodes) + 1), text, (), "chat")
        if self._underway:
            self.agent = replace(self._make_agent(), settings=self.agent.settings)
        self._underway = True
        (episode,) = self.agent.run([(question, 0)], on_event=on_event)
        self._underway = False
        episode = replace(episode, score=None)  # there is no gold answer to score it by
        self.episodes.append(episode)
        return episode

    def save(self, path: Path) -> None:
        """All episodes: trajectory records in a .jsonl file, a Markdown transcript in any other.

        Raises InputError if the file exists or cannot be written, or nothing was asked yet.
        """
        if not self.episodes:
            raise InputError("there is nothing to save yet", hint="ask a question first")
        if path.exists():
            raise InputError(f"{path} exists", hint="give another file name")
        try:
            self._write(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}", hint="give a file that you may write") from error

    def _write(self, path: Path) -> None:
        if path.suffix == ".jsonl":
            codec = self.agent.codec
            meta = {"protocol": codec.protocol.to_json(), "settings": self.agent.record()}
            write_trajectories(path, self.episodes, meta)
        else:
            write_atomic(path, markdown(self.episodes, self.agent.codec.decode))
