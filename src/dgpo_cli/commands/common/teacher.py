"""The teacher of `dgpo distill-data`: a model that is loaded here, or one behind a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.options import absolute, choose
from dgpo_cli.commands.common.search_environment import sendable_token
from dgpo_cli.commands.common.training_options import choose_teacher
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from dgpo_cli.training.teacher.settings import DistillDataSettings

KEY_VARIABLE = "DGPO_TEACHER_KEY"

UrlOption = Annotated[
    str | None, typer.Option(help="Server that speaks OpenAI's /v1/completions, instead of --teacher.")
]
NameOption = Annotated[str | None, typer.Option(help="Model of --teacher-url; its only one by default.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(help="Student whose tokenizer and agent text to use, where the teacher is no model that is loaded."),
]
EngineOption = Annotated[
    str | None, typer.Option(help="transformers, or vllm where that is installed; transformers by default.")
]

FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="tags or tool_calls: the agent's text for a model that was never trained to search."),
]


def teacher_key() -> str | None:
    """The key of the teacher's server; None if unset."""
    value = os.environ.get(KEY_VARIABLE)
    return sendable_token(value, KEY_VARIABLE, hint="give the key that the server asks for") if value else None


def teacher_values(
    console: Console,
    before: Mapping[str, Any],
    *,
    teacher: str | None,
    url: str | None,
    name: str | None,
    tokenizer: str | None,
    written: str | None = None,
) -> dict[str, Any]:
    """The settings that name the teacher, those of flags over `before` (--config and -o). Raises ConfigError.

    `written` is a file of demonstrations, which answers instead of a teacher.
    """
    if written is None and teacher is None and url is None:
        written = before.get("demonstrations")
    else:
        _require_alone(
            before, "--demonstrations" if written is not None else "--teacher" if url is None else "--teacher-url"
        )
    if written is not None or (teacher or (before.get("teacher") if url is None else None)) == "gold":
        if written is not None and (teacher is not None or url is not None):
            raise ConfigError(
                "--demonstrations answers instead of a teacher", hint="leave --teacher and --teacher-url out"
            )
        if name is not None or url is not None:
            raise ConfigError("--teacher-url and --teacher-name have no effect with --teacher gold", hint="give one")
        of = choose(console, "student", tokenizer or before.get("tokenizer"), hint="give --tokenizer STUDENT")
        named = (
            {"teacher": "gold"}
            if written is None
            else {"teacher": "demonstrations", "demonstrations": absolute(written)}
        )
        return named | {"tokenizer": absolute(of)}
    if url is None and teacher is None:
        url = before.get("teacher_url")
    if url is None:
        if name is not None or tokenizer is not None:
            flag = "--teacher-name" if name is not None else "--tokenizer"
            raise ConfigError(
                f"{flag} has no effect without --teacher-url, --teacher gold or --demonstrations",
                hint="give one of them",
            )
        chosen = choose_teacher(console, teacher or before.get("teacher"))
        return {"teacher": absolute(chosen)}
    if teacher is not None:
        raise ConfigError(
            "--teacher names a model to load, --teacher-url one that is served",
            hint="give one of them; the served model's name is --teacher-name",
        )
    return _served(console, before, url, name, tokenizer)


def _require_alone(before: Mapping[str, Any], flag: str) -> None:
    """Raises ConfigError where --config or -o name a teacher of another sort, whose settings would stay."""
    own = {"--demonstrations": "demonstrations", "--teacher-url": "teacher_url"}
    for other in ("demonstrations", "teacher_url"):
        if other in before and own.get(flag) != other:
            raise ConfigError(
                f"{flag} and {other} = {before[other]} of --config or -o say both who answers", hint="give one of them"
            )


def _served(
    console: Console, before: Mapping[str, Any], url: str, name: str | None, tokenizer: str | None
) -> dict[str, Any]:
    from dgpo_cli.core.config import apply_options
    from dgpo_cli.engine.turnwise.model_server import ModelServerAccess, choose_model
    from dgpo_cli.models.sources import resolve

    access = apply_options(ModelServerAccess, before.get("server", {}))
    server = choose_model(url, name or before.get("teacher"), teacher_key(), access)
    url, model = server.url, server.model
    console.info(f"teacher: {model} at {url}")
    of = tokenizer or before.get("tokenizer") or model
    try:
        resolve(of)
    except ModelError as error:
        if of != model:
            raise
        raise ConfigError(
            f"the tokenizer of {model!r} is not to be found by that name",
            hint="name a model that has it: --tokenizer, the student that you will train",
        ) from error
    if of == model:
        console.info(f"tokenizer: {of} (the teacher's name)")
    return {"teacher": model, "teacher_url": url, "tokenizer": absolute(of)}


def source_of_text(settings: DistillDataSettings) -> str:
    """The model whose tokenizer, agent text and limits are used."""
    return settings.tokenizer or settings.teacher


def is_loadable(settings: DistillDataSettings) -> bool:
    """Whether `kd` and `rl` can load the teacher: not where a server has it, or there is none."""
    return settings.teacher_url is None and not settings.written


def remember_data(settings: DistillDataSettings, folder: Path) -> None:
    """Remember defaults for the next command: the trajectories in `folder`, and the settings they were made with."""
    from dgpo_cli.core.workspace import Workspace

    used = {"teacher": settings.teacher} if is_loadable(settings) else {}
    if settings.demonstrations is None:
        used["questions"] = settings.questions
    Workspace().remember(by="dgpo distill-data", trajectories=absolute(str(folder)), index=settings.index, **used)
