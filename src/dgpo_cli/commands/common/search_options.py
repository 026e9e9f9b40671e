"""`-o rerank.model=...` of the commands that search and have no settings file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dgpo_cli.retrieval.rerank import RerankConfig

RerankOption = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--set",
        metavar="NAME=VALUE",
        help="How found passages are reranked: -o rerank.model=..., -o rerank.depth=50.",
    ),
]


def rerank_config(options: list[str] | None) -> RerankConfig:
    """Raises ConfigError for an option that is none of reranking."""
    from dgpo_cli.core.config import apply_options, parse_options
    from dgpo_cli.retrieval.rerank import SearchSettings

    return apply_options(SearchSettings, parse_options(options or ())).rerank
