"""Model repositories of the hub: what is cached, and small files, without waiting for a hub that does not answer."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.core.hub import cached, unreachable
from dgpo_cli.core.schema import map_of, read_record, record, text
from dgpo_cli.errors import ModelError

_INDEX = record({"weight_map": map_of(text(empty=False))})


def is_cached(repo: str) -> bool:
    """Whether configuration and all weights of a model are in the hub library's cache."""
    if cached(repo, "config.json") is None:
        return False
    index = cached(repo, "model.safetensors.index.json")
    if index is None:
        return cached(repo, "model.safetensors") is not None
    weights = read_record(Path(index), _INDEX, hint="download the model again", error=ModelError)
    shards = set(weights["weight_map"].values())
    return all(cached(repo, shard) is not None for shard in shards)


def must_be_local(repo: str) -> bool:
    """False if the hub answers, True if it does not but has been read before. Raises ModelError if neither."""
    reason = unreachable()
    if reason is None:
        return False
    if cached(repo, "config.json") is None:
        raise ModelError(
            f"{repo} is not cached, and {reason}",
            hint="connect once, or give a local folder or an earlier run: `dgpo models` shows what is here",
        )
    return True


def is_readable(repo: str) -> bool:
    """Whether files of the repository can be read, from the hub or from its cache."""
    return unreachable() is None or cached(repo, "config.json") is not None


def fetch(repo: str, file: str) -> str | None:
    """Path of a small file of a model repository; None if it has no such file. Raises ModelError as `must_be_local`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return hf_hub_download(repo, file, local_files_only=must_be_local(repo))
    except EntryNotFoundError:  # also where the cache holds only other files of the repository
        return None
