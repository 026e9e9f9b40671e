"""What a retriever is, and what an engine that keeps an index on disk adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit

if TYPE_CHECKING:  # it takes numpy, which settings and plans that name a retriever do without
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
    """The passages of each query in turn. Some hundred queries are searched at once, and told as they are done."""
    for start in range(0, len(queries), _AT_ONCE):
        part = queries[start : start + _AT_ONCE]
        yield from retriever.search(part, k)
        if progress is not None:
            progress(start + len(part), len(queries))


class ServedRetriever(Retriever, Protocol):
    """A retriever without an index folder: a server, or the API of a search engine. `registry.py` finds the class."""

    @classmethod
    def open(cls, location: str, /) -> Self:
        """By its address, or by "package.module:Class?name=value". Raises ConfigError for one that cannot be."""
        ...

    def check(self) -> None:
        """Ask once, with little patience: long work is about to begin. Raises RetrievalError without an answer."""
        ...


class IndexedRetriever(Retriever, Protocol):
    """A retriever over an index folder. `registry.py` names the classes."""

    Config: ClassVar[type]  # frozen dataclass of its settings
    LIBRARIES: ClassVar[tuple[str, ...]]  # distributions whose versions the manifest records

    def __init__(self, directory: Path, store: PassageStore, config: Any, state: Mapping[str, Any], /) -> None:
        """Open the engine's files in `directory`. Raises RetrievalError if they are not what `state` says."""
        ...

    @staticmethod
    def build(directory: Path, store: PassageStore, config: Any, progress: Progress | None = None, /) -> dict[str, Any]:
        """Write the engine's files; returns the `state` that opening them checks."""
        ...
