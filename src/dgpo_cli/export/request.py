"""Whether an export can be made as it is asked for. Nothing here imports a library that computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgpo_cli.core import folders
from dgpo_cli.core.hub import unreachable
from dgpo_cli.core.locks import Lock
from dgpo_cli.errors import ConfigError, ModelError

QUANTIZED = ("q8_0",)
FORMS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # of GGUF files, by dtype


@contextmanager
def claimed(target: Path, *, overwrite: bool) -> Iterator[None]:
    """`target` for this process alone, what a killed export left of it settled.

    Raises ConfigError if something is there that must not be replaced: with `overwrite` a model folder may be.
    """
    with Lock.beside(target, hint="wait for it, or give another folder"):
        folders.settle(target)
        _check_target(target, overwrite=overwrite)
        yield


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / "config.json").is_file():
        raise ConfigError(f"{target} exists and is no model folder", hint="give a folder that does not exist yet")
    if not overwrite:
        raise ConfigError(f"{target} holds a model already", hint="add --overwrite to replace it")


def form_of(dtype: str | None, quantize: str | None) -> str | None:
    """The form of storage that flags name; None for that of the weights. Raises ConfigError."""
    if dtype is not None and dtype not in FORMS:
        raise ConfigError(f"unknown dtype {dtype!r}", hint=f"choose one of: {', '.join(FORMS)}")
    if quantize is None:
        return None if dtype is None else FORMS[dtype]
    if quantize not in QUANTIZED:
        raise ConfigError(f"unknown form {quantize!r}", hint=f"give --quantize {QUANTIZED[0]}, or --dtype float16")
    if dtype is not None:
        raise ConfigError(f"--quantize {quantize} and --dtype {dtype} are two forms", hint="give one of them")
    return quantize


def check_push(repo: str) -> None:
    """Raises ModelError or ConfigError before anything is written if a push could not work."""
    from huggingface_hub import get_token

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"{repo!r} is no hub id", hint="give --push OWNER/NAME")
    reason = unreachable()
    if reason is not None:
        raise ModelError(f"nothing can be pushed: {reason}", hint="leave --push out; the folder can be uploaded later")
    if get_token() is None:
        raise ModelError("nothing can be pushed: not logged in to the hub", hint="run `hf auth login`")
