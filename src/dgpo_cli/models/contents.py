"""The contents of a model folder as one short digest: folders with the same digest give the same answers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

# Every file that transformers or this package reads; a README or a log next to them changes nothing.
_READ = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "protocol.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.json", "*.jinja",
    "additional_chat_templates/*.jinja",
)  # fmt: skip


def folder_digest(folder: Path) -> str:
    """Digest of the names and the contents of all files that are read when the model of `folder` is loaded."""
    files = sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file; cached in the process for a large file until it changes."""
    found = path.stat()
    return _file_digest(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(1024)
def _file_digest(path: Path, *_: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
