"""What a retriever is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dgpo_cli.core.types import Hit


class Retriever(Protocol):
    """Answers queries with passages. One call takes many queries, so that an engine can use all cores."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Best `k` passages per query, best first, ranks from 1; fewer where the index holds fewer.

        A blank query, or one that matches nothing, gives an empty list.
        Raises RetrievalError when the engine itself fails; it never returns made-up hits.
        """
        ...
