"""The interfaces of a retriever, and of a retriever that keeps an index on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit

if TYPE_CHECKING:  # it imports numpy, which settings and plans do not need
    from dgpo_cli.retrieval.index.store import PassageStore

_AT_ONCE = 256  # queries


class Retriever(Protocol):
    """Answers queries with passages. One call takes many queries, so that an engine can use all cores."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Best `k` passages per query, best first, ranks from 1; fewer where the index holds fewer.

        A blank query, or one that matches nothing, gives an empty list.
        Raises RetrievalError when the engine itself fails; it never returns made-up hits.
        """
        ...


def search_many(
    retriever: Retriever, queries: Sequence[str], k: int, progress: Progress | None = None
) -> Iterator[list[Hit]]:
    """The passages of each query in turn. Some hundred queries are searched at once; `progress` counts them."""
    for start in range(0, len(queries), _AT_ONCE):
        part = queries[start : start + _AT_ONCE]
        yield from retriever.search(part, k)
        if progress is not None:
            progress(start + len(part), len(queries))


class ServedRetriever(Retriever, Protocol):
    """A retriever without an index folder: a server, or the API of a search engine. `registry.py` finds the class."""

    @classmethod
    def open(cls, location: str, /) -> Self:
        """Open by address, or by "package.module:Class?name=value". Raises ConfigError for an invalid one."""
        ...

    def check(self) -> None:
        """Search once, with a short timeout, before long work begins. Raises RetrievalError without an answer."""
        ...


class IndexedRetriever(Retriever, Protocol):
    """A retriever over an index folder. `registry.py` names the classes."""

    Config: ClassVar[type]  # frozen dataclass of its settings
    LIBRARIES: ClassVar[tuple[str, ...]]  # distributions whose versions the manifest records

    def __init__(self, directory: Path, store: PassageStore, config: Any, state: Mapping[str, Any], /) -> None:
        """Open the engine's files in `directory`. Raises RetrievalError if they do not match `state`."""
        ...

    @staticmethod
    def build(directory: Path, store: PassageStore, config: Any, progress: Progress | None = None, /) -> dict[str, Any]:
        """Write the engine's files; returns the `state` that opening them checks."""
        ...
