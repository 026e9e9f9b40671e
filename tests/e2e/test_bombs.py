"""Small files that unpack to hundreds of megabytes: the good rows are indexed, in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pytest
from pyarrow import parquet

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
