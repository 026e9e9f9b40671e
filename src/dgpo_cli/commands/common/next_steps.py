"""Next commands to suggest: only those that run in this folder as it stands."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import InputError, ModelError

NO_INDEX = "dgpo index --help"  # of what searches, where no index is remembered


def after_make_questions(*, teacher: bool) -> list[str]:
    """`teacher` tells that one is remembered which answers in the search loop, too."""
    if teacher:
        return ["dgpo distill-data"]
    if _remembered("student") is not None:
        return ["dgpo distill-data --teacher gold"]
    known = next((name for name in ("qwen-0.5b", "smollm2-135m") if _readable(name)), None)
    return ["dgpo models"] if known is None else [f"dgpo distill-data --teacher gold --tokenizer {known}"]


def after_distill_data(student: str | None, *, loadable: bool) -> list[str]:
    """`student` is a model of the trajectories' tokenizer, where one was named; `loadable` that the teacher can be."""
    words = ["dgpo kd", *([] if loadable else ["--method seqkd"])]
    if _remembered("student") is None:
        known = student or "qwen-0.5b"
        if not _readable(known):
            return ["dgpo models"]  # of which one has to be given
        words += [shell.command("--student", student)] if student is not None else []
    return [" ".join(words)]


def after_kd(*, teacher: bool) -> list[str]:
    """`teacher` tells that one is at hand which reads the student's tokens."""
    if _remembered("index") is None:
        return [NO_INDEX]
    return [_rl(teacher), "dgpo chat", *_evaluations()]


def after_rl() -> list[str]:
    return [*_evaluations(), "dgpo chat", "dgpo report"]


def after_export(directory: Path) -> list[str]:
    return [shell.command("dgpo", "chat", "--model", directory) if _remembered("index") is not None else NO_INDEX]


def choose_bench(console: Console, bench: str | None, folder: Path | None) -> tuple[str, Path | None]:
    """Question sets and the folder of their files: given, else remembered, else all seven from the hub."""
    place = _remembered("bench_dir")
    known = _remembered("bench")
    if bench is None and folder is None and known is not None:
        console.info(f"bench: {known}{f', of {place}' if place else ''} (remembered)")
        return known, None if place is None else Path(place)
    if (
        folder is None
        and place is not None
        and known is not None
        and set((bench or "").split(",")) <= {*known.split(",")}
    ):
        folder = Path(place)
    return bench or "all", folder


def _rl(teacher: bool) -> str:
    """With a batch that the known questions can fill, a part of them held out."""
    from dgpo_cli.qa_sets import training_set
    from dgpo_cli.training.settings import RLSettings

    words = ["dgpo rl", *([] if teacher else ["--method ppo"])]
    try:
        count = len(training_set(_remembered("questions") or "nq,hotpotqa"))
    except InputError:  # they would have to be given
        return "dgpo rl --help"
    kept = count - count // 20
    if kept < RLSettings(student="", index="", questions="").batch_size:
        words.append(f"--batch-size {1 << (kept.bit_length() - 1)}")
    return " ".join(words)


def _evaluations() -> list[str]:
    """Without a question set of this folder the seven are fetched."""
    from dgpo_cli.core.hub import unreachable

    return ["dgpo eval"] if _remembered("bench") is not None or unreachable() is None else []


def _remembered(key: str) -> str | None:
    return Workspace().resolve(key, None).value


def _readable(model: str) -> bool:
    from dgpo_cli.models.hub import is_readable
    from dgpo_cli.models.sources import resolve

    try:
        source = resolve(model)
    except ModelError:  # an alias of a model that is in no cache
        return False
    return source.local or is_readable(source.location)
