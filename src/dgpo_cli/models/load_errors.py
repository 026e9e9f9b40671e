"""Errors in loading a model, as one line with a hint."""

from __future__ import annotations

import json

import torch
from safetensors import SafetensorError

from dgpo_cli.core.machine_faults import causes_of, pass_on
from dgpo_cli.errors import DgpoError, ModelError, first_line


def explain(error: Exception, location: str, *, local: bool) -> Exception:
    """The error to raise for `error`; one of ours stays as it is. Raises a fault of the machine."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    causes = list(causes_of(error))  # transformers wraps the hub's errors in an OSError
    if isinstance(error, DgpoError):
        return error
    if _any(causes, torch.OutOfMemoryError):
        return ModelError(
            f"{location} does not fit into the device's memory", hint="load it in 8 bit, or take a smaller one"
        )
    pass_on(error)
    if _any(causes, GatedRepoError):
        return ModelError(f"{location} is gated", hint="accept its licence on its hub page, then run `hf auth login`")
    if _any(causes, RepositoryNotFoundError):
        return ModelError(
            f"the hub has no model {location!r}, or it is private",
            hint="check the name (`dgpo models` lists aliases); for a private one run `hf auth login`",
        )
    again = (
        "export the model again with `dgpo export`, or take another"
        if local
        else "delete it from the hub cache and retry"
    )
    if _any(causes, SafetensorError, json.JSONDecodeError):
        return ModelError(f"{location} is damaged: {first_line(error)}", hint=again)
    if _any(causes, LocalEntryNotFoundError, ConnectionError, TimeoutError):
        return ModelError(
            f"{location} is not cached completely, and the hub does not answer",
            hint="connect and retry; the download goes on where it stopped",
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{location} brings code of its own, which is never run", hint="take a model that transformers knows"
        )
    if "backend tokenizer" in str(error):
        return ModelError(
            f"{location} has no tokenizer.json", hint="add it from the base model, or export the model again"
        )
    if "safetensors" in str(error):
        return ModelError(
            f"{location} has no weights as safetensors", hint="convert it, or take another revision of it"
        )
    return ModelError(f"{location} cannot be loaded: {first_line(error)}", hint=again)


def _any(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)
