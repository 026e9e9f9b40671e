"""`dgpo search`: what the agent would see for a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.options import DeviceOption, JsonFlag, QuietFlag, choose_index
from dgpo_cli.commands.common.search_options import RerankOption, rerank_config
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dgpo_cli.core.types import Hit

_SHOWN = 240  # characters of a passage


def search(
    query: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    index: Annotated[
        str | None, typer.Option(help="Index folder or server address; the current one by default.", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Passages to show.")] = 5,
    observation: Annotated[
        bool, typer.Option("--observation", help="The exact text that an agent reads, instead of the list.")
    ] = False,
    options: RerankOption = None,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Search as an agent does, and see what it would see.

    Examples: `dgpo search "who directed Vertigo"` · `dgpo search "Vertigo" --index indexes/wiki -k 3 --observation`
    """
    import time

    from dgpo_cli.formats.tags import DEFAULT
    from dgpo_cli.retrieval.open import open_index

    console = Console(json_output=json, quiet=quiet)
    if not query.strip():
        raise ConfigError("the query is empty", hint='write it like dgpo search "who directed Vertigo"')
    if top_k < 1:
        raise ConfigError(f"-k {top_k} leaves no passage", hint="give -k 1 or more")
    rerank = rerank_config(options)
    opened = open_index(choose_index(console, index), device=device or "auto", rerank=rerank)
    began = time.perf_counter()
    (hits,) = opened.retriever.search([query], top_k)
    seconds = time.perf_counter() - began
    text, escaped = DEFAULT.render_observation([hit.passage for hit in hits])
    if observation:
        console.print(text.strip("\n"))
    else:
        _show(console, hits)
    if escaped:
        console.info(f"{escaped} look-alikes of the agent's tags are escaped in what an agent reads")
    console.info(f"{counted(len(hits), 'passage')} in {1000 * seconds:.1f} ms")
    console.result(
        {
            "query": query,
            "index": opened.location,
            "rerank": rerank.model,
            "seconds": round(seconds, 6),
            "hits": [
                {"rank": h.rank, "score": h.score, "id": h.passage.id, "contents": h.passage.contents} for h in hits
            ],
            "observation": text,
        }
    )


def _show(console: Console, hits: Sequence[Hit]) -> None:
    if not hits:
        console.print("nothing found")
    for hit in hits:
        console.print(f"{hit.rank}  {hit.passage.title}", style="bold")
        text = " ".join(hit.passage.text.split())
        shown = text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " ..."
        console.paragraph(shown, indent=3)
        console.print(f"   {hit.score:.4f}  {hit.passage.id}", style="dim")
