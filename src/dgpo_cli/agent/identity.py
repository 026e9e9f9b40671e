"""Digests of the files that a run's settings name: they identify a run by contents, so that folders can be moved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.folders import recover_to_read
from dgpo_cli.core.locks import lock_inside
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.contents import file_digest, folder_digest
from dgpo_cli.models.sources import resolve
from dgpo_cli.qa_sets.forms import SUFFIXES
from dgpo_cli.retrieval.index.manifest import FILE as MANIFEST_FILE
from dgpo_cli.retrieval.index.manifest import read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MODELS = ("student", "teacher", "model", "tokenizer")


def contents(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the contents of every file, model folder, run and index folder that `config` names, at any depth.

    Names of the hub, of servers and of their models have none: they identify themselves.
    """
    found = {}
    for name, value in _strings(config):
        digest = _model(value) if name in _MODELS else _locations(value)
        if digest is not None:
            found[value] = digest
    return found


def dated(run: RunDir, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> Protocol:
    """The protocol of a run: with the date on which the run began, if the chat template writes one."""
    if not protocol.chat_template or "strftime_now" not in str(tokenizer.chat_template):
        return replace(protocol, date=None)
    date = run.record.get("date")
    if date is None:
        date = datetime.now().date().isoformat()
        run.note(date=date)
    return replace(protocol, date=date)


def location_digest(path: Path) -> str | None:
    """Digest of an index, a model folder, a run (its trajectories, else its best weights) or a file; else None."""
    try:
        if path.is_file():
            return file_digest(path)[:16]
        if not path.is_dir():
            return None
    except OSError:  # a text that is too long for a name
        return None
    if (path / MANIFEST_FILE).is_file():
        return read_manifest(path).digest
    if (path / "trajectories.jsonl").is_file():
        return file_digest(path / "trajectories.jsonl")[:16]
    recover_to_read(path / "best", lock_inside(path))
    folder = path / "best" if (path / "best").is_dir() else path
    if (folder / "config.json").is_file():
        return folder_digest(folder)
    # A folder of --bench-dir, or of BEIR.
    named = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    questions = [path for path in (*named, *sorted((folder / "qrels").glob("*.tsv"))) if path.is_file()]
    parts = [f"{file.name} {file_digest(file)}" for file in questions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else None


def _locations(text: str) -> str | None:
    """The paths in a comma-separated setting; names that identify themselves are left out."""
    whole = location_digest(Path(text))
    if whole is not None or "," not in text:
        return whole
    parts = [part.strip() for part in text.split(",")]
    found = [location_digest(Path(part)) for part in parts]
    if not any(found):
        return None
    named = "\n".join(digest or part for part, digest in zip(parts, found, strict=True))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _model(name: str) -> str | None:
    try:
        source = resolve(name)
    except ModelError:  # a model of a server, or no model: a teacher that is a script
        return None
    return folder_digest(Path(source.location)) if source.local else None


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name of the setting, text) of every text in `value`, at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, name)
    elif isinstance(value, Path) or (isinstance(value, str) and value):
        yield name, str(value)
