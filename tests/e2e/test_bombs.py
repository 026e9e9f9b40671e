"""Small files that unpack to hundreds of megabytes: the good rows are indexed, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pytest
from pyarrow import parquet
from tests.documents import docx_files, epub_files, paragraph, zipped

LIMIT = 300_000_000  # bytes that the whole command may take
COMMAND = """
import shutil, sys
from dgpo_cli.__main__ import main
try:
    main()
finally:
    shutil.copyfile("/proc/self/status", "status")
"""
ROWS = [{"id": str(number), "contents": f'"Town {number}"\nTown {number} lies by the river.'} for number in (1, 2)]


def write_bomb(stream: BinaryIO) -> None:
    """One line of 600 MB between two good ones."""
    stream.write(json.dumps(ROWS[0]).encode() + b'\n{"id": "3", "contents": "')
    for _ in range(600):
        stream.write(b"a" * 1_000_000)
    stream.write(b'"}\n' + json.dumps(ROWS[1]).encode() + b"\n")


def write(path: Path) -> None:
    if path.suffix == ".gz":
        with gzip.open(path, "wb") as packed:
            write_bomb(cast(BinaryIO, packed))
    elif path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as packed:
            write_bomb(packed)
    else:
        good = pyarrow.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
        with parquet.ParquetWriter(path, good.schema, compression="zstd", use_dictionary=False) as writer:
            writer.write_table(good)
            writer.write_table(pyarrow.table({"id": ["3"], "contents": ["a" * 150_000_000]}))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux for the peak of a process")
@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_a_bomb_takes_no_memory(folder: Path, name: str) -> None:
    write(folder / name)
    assert (folder / name).stat().st_size < 700_000
    child = subprocess.run(
        [sys.executable, "-c", COMMAND, "index", name, "--out", "index", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    made = json.loads(child.stdout)
    assert (made["passages"], made["skipped"]) == (2, 1), made
    peak = int((folder / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    assert peak < LIMIT, f"{peak / 1e6:.0f} MB"


def zeros(name: str, others: Mapping[str, bytes | str], size: int = 300_000_000) -> bytes:
    """An archive with a file of so many zeros in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in others.items():
            archive.writestr(other, content)
        with archive.open(name, "w") as stream:
            for _ in range(size // 1_000_000):
                stream.write(bytes(1_000_000))
    return made.getvalue()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux for the peak of a process")
def test_a_folder_of_bombs_takes_no_memory(folder: Path) -> None:
    texts = folder / "texts"
    texts.mkdir()
    (texts / "good.txt").write_text("Vesapo lies by the river.", encoding="utf-8")
    word = docx_files(paragraph("x"))
    bomb = zeros("word/document.xml", {name: held for name, held in word.items() if name != "word/document.xml"})
    size = (300_000_000).to_bytes(4, "little")
    (texts / "bomb.docx").write_bytes(bomb)
    (texts / "lying.docx").write_bytes(bomb.replace(size, (999).to_bytes(4, "little")))
    (texts / "bomb.epub").write_bytes(zeros("OEBPS/a.xhtml", epub_files({"b.xhtml": "<p>x"}), 100_000_000))
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "aaaaaaaaaa"}">' for n in range(10))
    (texts / "entities.docx").write_bytes(
        zipped(word | {"word/document.xml": f"<!DOCTYPE x [{entities}]>{word['word/document.xml']}"})
    )
    (texts / "deep.json").write_bytes(b"[" * 10_000_000)
    assert sum(path.stat().st_size for path in texts.iterdir()) < 15_000_000
    child = subprocess.run(
        [sys.executable, "-c", COMMAND, "index", "texts", "--out", "index", "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    made = json.loads(child.stdout)
    assert (made["passages"], made["skipped"]) == (1, 5), made
    assert made["skipped_by_kind"] == {
        "broken DOCX": 2, "oversized DOCX": 1, "oversized EPUB": 1, "broken JSON": 1,
    }  # fmt: skip
    peak = int((folder / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    assert peak < LIMIT, f"{peak / 1e6:.0f} MB"
