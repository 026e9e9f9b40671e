"""Open an index folder, or a retrieval server, by its location."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.manifest import Manifest, read_manifest
from dgpo_cli.retrieval.registry import retriever_class
from dgpo_cli.retrieval.store import PassageStore


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """`manifest` and `passages` are None for a server, which does not tell them."""

    location: str
    retriever: Retriever
    manifest: Manifest | None
    passages: PassageStore | None

    @property
    def digest(self) -> str:
        """What a record says about where its passages come from."""
        return self.location if self.manifest is None else self.manifest.digest


def open_index(location: str | Path) -> OpenIndex:
    """Raises RetrievalError saying why an index cannot be used and what rebuilds it."""
    text = str(location)
    if text.startswith(("http://", "https://")):
        from dgpo_cli.retrieval.remote import RemoteRetriever

        return OpenIndex(text, RemoteRetriever(text), None, None)
    directory = Path(location)
    manifest = read_manifest(directory)
    store = PassageStore(directory)
    if len(store) != manifest.passages:
        raise RetrievalError(
            f"{directory} holds {len(store)} passages, its manifest says {manifest.passages}", hint="build the index again"
        )
    retriever: Retriever = retriever_class(manifest.retriever)(directory, store, manifest.settings)
    return OpenIndex(str(directory), retriever, manifest, store)
