"""A disk that becomes full at any moment of a command: one line, whole files, and nothing killed by a signal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.folder_contents import contents, difference
from tests.processes import forked
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage

LINE = "error: no room to write: No space left on device"
HINT = "hint: free some space, or write to another disk; what was saved is kept"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A small disk of so many kilobytes, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = 0

    def mount(kilobytes: int) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("only root may mount a disk")
        mounted += 1
        return place

    yield mount
    for _ in range(mounted):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_a_build_on_a_disk_that_becomes_full(tmp_path: Path, disk: Callable[[int], Path], retriever: str) -> None:
    """From one too small for the passages to one that suffices; in between it fills up at every kind of file."""
    count = len(WORDS)
    texts = (f"{WORDS[n % count]} {WORDS[n // count % count]} {WORDS[n * n % count]} " * 3 for n in range(4_000))
    corpus = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), text) for n, text in enumerate(texts)))
    dense = ["--encoder", make_encoder(tmp_path / "encoder"), "-o", "max_length=40"] if retriever == "dense" else []
    refused = 0
    for kilobytes in (8, 120, 300, 320, 340, 360, 380, 400, 420, 450, 500, 4_000):
        out = disk(kilobytes) / "two"
        status, told = forked(tmp_path, "index", corpus, "--out", out, "--retriever", retriever, *dense, "-q")
        if status == 0:
            break
        assert (status, told[0][: len(LINE)], told[1:]) == (1, LINE, [HINT]), "\n".join([str(kilobytes), *told])
        assert not out.exists()
        refused += 1
    assert refused >= 6 and status == 0


def test_states_metrics_and_records_on_a_full_disk(offline, tmp_path: Path, disk: Callable[[int], Path]) -> None:
    order = [
        *("rl", "--student", offline.student, "--teacher", offline.teacher, "--index", offline.index, "-q"),
        *("--data", offline.questions("train"), "--eval-data", offline.questions("validation"), "--steps", 2),
        *("--batch-size", 2, "-orollout.max_turns=1", "-orollout.max_new_tokens=4"),
    ]
    sizes = [60, 700, 1_100]
    for kilobytes in sizes:
        place = disk(kilobytes)
        (place / "filler").write_bytes(b"x" * (kilobytes * 1024 - 45_000))
        status, told = forked(tmp_path, *order, "--out", place / "run", "-osave_every=1")
        assert (status, "no room" in told[-2] or "GB of disk" in told[-2]) == (1, True), told
        assert not list((place / "run").rglob("*.writing"))


@pytest.mark.parametrize(
    ("command", "sizes", "least"),
    [("distill-data", (8, 20, 36, 48, 1_000), 3), ("eval", (8, 44, 1_000), 2)],  # eval asks for 60 kB a question first
    ids=["distill-data", "eval"],
)
def test_episodes_on_a_full_disk(
    offline, tmp_path: Path, disk: Callable[[int], Path], command: str, sizes: Sequence[int], least: int
) -> None:
    """It fills up at every kind of file; with room again the same command ends with what an undisturbed one has."""
    shared = ["--index", offline.index, "--limit", 6, "-q"]
    order = [command, *shared]
    if command == "eval":
        order += ["--model", offline.teacher, "--bench", "tinyworld", "--bench-dir", offline.folder / "world"]
        order += ["--max-searches", 2, "--batch-size", 2, "-k", 2]
    else:
        order += ["--teacher", offline.teacher, "--data", offline.questions("train"), "--keep", "all"]
        order += ["-orollout.max_turns=2", "-orollout.max_new_tokens=16", "-orollout.wave=2"]
    place = disk(2_000)
    assert forked(tmp_path, *order, "--out", tmp_path / "whole")[0] == 0
    refused = set()
    for kilobytes in sizes:
        (place / "filler").write_bytes(b"x" * (os.statvfs(place).f_bavail * 4096 - kilobytes * 1024))
        status, told = forked(tmp_path, *order, "--out", place / "run")
        if status == 0:
            break
        assert (status, "no room" in told[-2] or "GB of disk" in told[-2]) == (1, True), told
        assert " 0.0 GB" not in told[-2]
        assert not list((place / "run").rglob("*.writing"))
        refused.add(tuple(sorted(path.name for path in (place / "run").iterdir())))
        (place / "filler").unlink()
    assert status == 0
    assert len(refused) >= least, "at so many places"
    whole, found = (contents(folder) for folder in (tmp_path / "whole", place / "run"))
    assert whole.keys() == found.keys()
    records = [name for name in whole if name.endswith(".jsonl")]
    assert len(records) == {"distill-data": 2, "eval": 1}[command]
    assert difference(*({name: rows[name] for name in records} for rows in (whole, found))) == ""
