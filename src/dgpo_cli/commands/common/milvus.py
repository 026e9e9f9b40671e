"""Milvus on the command line: its address as a flag, its token from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dgpo_cli.commands.common.search_environment import TIMEOUT_VARIABLE, sendable_token
from dgpo_cli.errors import ConfigError

MILVUS_TOKEN_VARIABLE = "DGPO_MILVUS_TOKEN"


def use_milvus_environment() -> None:
    """Let every Milvus server that is opened from now on be asked as the environment says.

    Comes after `use_search_environment`, which has checked the timeout.
    """
    token, timeout = os.environ.get(MILVUS_TOKEN_VARIABLE), os.environ.get(TIMEOUT_VARIABLE)
    if token or timeout:
        from dgpo_cli.retrieval.remote.milvus.connection import MilvusAccess, use_access

        use_access(
            MilvusAccess(
                token=sendable_token(token, MILVUS_TOKEN_VARIABLE) if token else None,
                timeout_s=float(timeout) if timeout else MilvusAccess().timeout_s,
            )
        )


def add_address(settings: dict[str, Any], retriever: str, uri: str | None, out: Path) -> None:
    """Put --uri into the settings. Raises ConfigError where it has no effect or is within `out`, which is replaced.

    Raises RetrievalError where nothing answers at it.
    """
    if retriever != "milvus":
        if uri is not None:
            raise ConfigError(f"--uri has no effect on {retriever}", hint="give --retriever milvus, or no --uri")
        return
    if uri is not None:
        settings["uri"] = uri
    from dgpo_cli.core.config import apply_options
    from dgpo_cli.retrieval.remote.milvus.retriever import MilvusConfig, check_reachable

    config = apply_options(MilvusConfig, settings)
    if config.uri is not None and Path(config.uri).is_relative_to(out.resolve()):
        raise ConfigError(f"{config.uri} is in the index folder {out}", hint="give a --uri with it, or another --out")
    check_reachable(config)
