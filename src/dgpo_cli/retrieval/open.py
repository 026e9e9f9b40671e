"""Open an index folder, or a retrieval server, by its location."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgpo_cli.core import shell
from dgpo_cli.core.config import apply_options
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.device import use_device
from dgpo_cli.retrieval.index.manifest import Manifest, check_hashes, read_manifest
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.registry import is_server, retriever_class, served_retriever
from dgpo_cli.retrieval.rerank import RerankConfig, Reranked


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """`manifest` and `passages` are None for a server, which does not expose them."""

    location: str
    retriever: Retriever
    manifest: Manifest | None
    passages: PassageStore | None
    reranked: str = ""  # digest of the reranker

    @property
    def digest(self) -> str:
        """Identity of the source of passages, for records."""
        index = self.location if self.manifest is None else self.manifest.digest
        return f"{index}+{self.reranked}" if self.reranked else index


def check_index(location: str | Path) -> None:
    """Ask before models are loaded: a server must answer one search, a folder must hold a whole index.

    Milvus, where the rows are in it, must answer. Raises RetrievalError. Cheap: of large files it reads a part.
    """
    if is_server(location):
        served_retriever(str(location)).check()
    else:
        manifest = read_manifest(Path(location))
        check_hashes(Path(location), manifest, whole=False)
        if manifest.retriever == "milvus":
            from dgpo_cli.retrieval.remote.milvus.connection import connect

            connect(manifest.settings["uri"])


def open_index(location: str | Path, *, device: str = "auto", rerank: RerankConfig | None = None) -> OpenIndex:
    """`device` is where an encoder, exact search and a reranker compute.

    Raises RetrievalError, which says why an index cannot be used and which command rebuilds it.
    """
    use_device(device)
    opened = _open(location)
    return opened if rerank is None else with_reranker(opened, rerank)


def with_reranker(opened: OpenIndex, rerank: RerankConfig) -> OpenIndex:
    """The same index, with its best passages reranked if `rerank` names a model."""
    if rerank.model is None:
        return opened
    reranked = Reranked(opened.retriever, rerank)
    return replace(opened, retriever=reranked, reranked=reranked.digest)


def _open(location: str | Path) -> OpenIndex:
    if is_server(location):
        return OpenIndex(str(location), served_retriever(str(location)), None, None)
    directory = Path(location)
    manifest = read_manifest(directory)
    check_hashes(directory, manifest, whole=False)
    store = PassageStore(directory)
    if len(store) != manifest.passages:
        raise RetrievalError(
            f"{directory} holds {len(store)} passages, its manifest says {manifest.passages}",
            hint=f"build it again: {manifest.rebuild_command(directory)}",
        )
    kind = retriever_class(manifest.retriever)
    try:
        config: Any = apply_options(kind.Config, manifest.settings)
    except ConfigError as error:
        again = shell.command("dgpo", "index", manifest.corpus, "--out", directory, "--overwrite")
        raise RetrievalError(
            f"{directory} was built by a version with other settings: {error.message}",
            hint=f"build it again: {again}",
        ) from error
    try:
        retriever = kind(directory, store, config, manifest.state)
    except (KeyError, TypeError) as error:  # every engine keeps a state of its own form in the manifest
        raise RetrievalError(
            f"{directory}: its manifest is damaged: `state` of another form ({error!r})",
            hint=f"build it again: {manifest.rebuild_command(directory)}",
        ) from error
    return OpenIndex(str(directory), retriever, manifest, store)
