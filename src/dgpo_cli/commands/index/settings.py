"""The settings of `dgpo index` from its flags."""

from __future__ import annotations

from typing import Any

from dgpo_cli.commands.common.options import absolute
from dgpo_cli.errors import ConfigError


def index_settings(retriever: str, encoder: str | None, options: list[str] | None) -> dict[str, Any]:
    """Settings from --encoder and -o. Raises ConfigError where one has no effect."""
    from dgpo_cli.core.config import parse_options

    settings = parse_options(options or ())
    if encoder is not None:
        if retriever not in ("dense", "hybrid", "milvus"):
            raise ConfigError(f"--encoder has no effect on {retriever}", hint="give --retriever dense, or no --encoder")
        of_dense = settings if retriever == "dense" else settings.setdefault("dense", {})
        if not isinstance(of_dense, dict):
            raise ConfigError(f"-o dense={of_dense} is no setting", hint="write it like -o dense.max_length=128")
        of_dense["encoder"] = absolute(encoder)
    return settings
