"""The corpus and the E5 index that Search-R1 published: what they are, what they need, and fetching them.

Wikipedia of December 2018 in 21,015,324 passages of about 100 words (Karpukhin et al. 2020), and their vectors by
intfloat/e5-base-v2 as a flat faiss index, cut in two for the hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from dgpo_cli.core.folders import beside
from dgpo_cli.core.hub import unreachable
from dgpo_cli.errors import InputError, first_line

ENCODER = "intfloat/e5-base-v2"
NAME = "wiki-18"
CORPUS = ("PeterJinGo/wiki-18-corpus", "wiki-18.jsonl.gz")
INDEX = "PeterJinGo/wiki-18-e5-index"
PARTS = ("part_aa", "part_ab")
_UNPACKED = 3  # times the size of the compressed corpus, 5.1 GB: 14 GB of text, and where each passage begins
_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class HubFile:
    repo: str
    name: str
    bytes: int
    commit: str
    cached: Path | None


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes: `download` in all, of which `to_cache` where the hub's cache lies, and `beside` where the index goes."""

    download: int
    to_cache: int
    beside: int


def listed(with_vectors: bool) -> list[HubFile]:
    """The published files, corpus first, with their sizes. Raises InputError where the hub does not answer."""
    files = [CORPUS, *((INDEX, part) for part in PARTS)] if with_vectors else [CORPUS]
    return [cached(repo, name) or _listed(repo, name) for repo, name in files]


def cached(repo: str, name: str) -> HubFile | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, repo_type="dataset")
    if not isinstance(found, str):
        return None
    return HubFile(repo, name, Path(found).stat().st_size, Path(found).parent.name, Path(found))


def needs(files: Sequence[HubFile], out: Path) -> Needs:
    corpus, *parts = files
    to_cache = 0 if corpus.cached else corpus.bytes
    flat = sum(part.bytes for part in parts)
    there = flat_file(out, parts).stat().st_size if parts and flat_file(out, parts).is_file() else 0
    fetched = max(0, sum(part.bytes for part in parts if not part.cached) - there)
    # The flat index holds 4 bytes a number, ours 2; a compressed one is made of these and smaller.
    return Needs(to_cache + fetched, to_cache, _UNPACKED * corpus.bytes + flat // 2 + flat - there)


def flat_file(out: Path, parts: Sequence[HubFile]) -> Path:
    """File in which the parts are put together, next to the index; another version of them goes into another file."""
    return beside(out, f"{parts[0].commit[:12]}.flat")


def discard_flat(out: Path) -> None:
    """Delete the parts put together, also those of another version, once the index is made of them."""
    place = out.resolve()
    for flat in place.parent.glob(f".{escape(place.name)}.*.flat"):
        flat.unlink()


def fetch_corpus(file: HubFile) -> Path:
    """The corpus in the hub's cache. Raises InputError."""
    from huggingface_hub import hf_hub_download

    if file.cached is not None:
        return file.cached
    with _stopping():
        return Path(hf_hub_download(file.repo, file.name, repo_type="dataset"))


def fetch_flat(parts: Sequence[HubFile], flat: Path) -> None:
    """Put the parts together in `flat`, going on after the last byte that is there, also after `kill -9`.

    They do not go through the hub's cache: it would hold a second copy, and begins an interrupted file from the start.
    Raises InputError.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    flat.parent.mkdir(parents=True, exist_ok=True)
    end = 0
    with open(flat, "ab") as joined:
        for part in parts:
            begin, end = end, end + part.bytes
            done = min(max(0, joined.tell() - begin), part.bytes)
            if done == part.bytes:
                continue
            if part.cached is not None:
                with open(part.cached, "rb") as stream:
                    stream.seek(done)
                    shutil.copyfileobj(stream, joined, _BLOCK)
                continue
            with _stopping():
                url = hf_hub_url(part.repo, part.name, repo_type="dataset", revision=part.commit)
                http_get(url, joined, resume_size=done, headers=build_hf_headers(), expected_size=part.bytes)


@contextmanager
def _stopping() -> Iterator[None]:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library, which it changes

    try:
        yield
    except (OSError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the hub
        raise InputError(
            f"the download stopped: {first_line(error)}", hint="the same command goes on from what is there"
        ) from error


def free_bytes(place: Path) -> int:
    """On the disk where `place` is or will be."""
    there = place.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def same_disk(one: Path, other: Path) -> bool:
    return _device(one) == _device(other)


def _device(place: Path) -> int:
    there = place.absolute()
    while not there.exists():
        there = there.parent
    return there.stat().st_dev


def _listed(repo: str, name: str) -> HubFile:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if reason := unreachable():
        raise InputError(
            f"{repo}/{name} is not cached, and {reason}",
            hint="connect to the hub, or build from files: dgpo index wiki-18.jsonl.gz --from-faiss e5_Flat.index",
        )
    try:
        told = hf_hub_download(repo, name, repo_type="dataset", dry_run=True)
    except (OSError, HTTPError) as error:
        raise InputError(f"{repo}/{name} cannot be fetched: {first_line(error)}", hint="try again later") from error
    assert not isinstance(told, str), "a dry run tells and fetches nothing"
    if told.file_size is None:
        raise InputError(f"the hub does not state the size of {repo}/{name}", hint="try again later")
    return HubFile(repo, name, told.file_size, told.commit_hash, None)
