"""A milvus-lite server in this process, and corpora that make Milvus's job hard: ties, and passages without a word."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import milvus_pb2_grpc
from tests.tiny_encoder import WORDS

from dgpo_cli.core.types import Hit, Passage

QUERIES = ["mayor Mira Holt", "weavers", "zzzz", " ", "river in the north", "novel novel harbour", "Tarn town Lun"]


def passages(count: int, seed: int = 0) -> list[Passage]:
    """Of words that the tiny encoder knows. Every tenth passage is another one's twin, every fiftieth has no word."""
    draw = random.Random(seed)
    words = [word for word in WORDS if len(word) > 1]  # Milvus's own BM25 counts shorter ones too
    made: list[Passage] = []
    for n in range(count):
        text = " ".join(draw.choices(words, k=draw.randint(3, 12)))
        if n % 50 == 49:
            made.append(Passage(f"p{n}", '"?"\n? !'))
            continue
        if n % 10 == 9:
            text = draw.choice(made).text
        made.append(Passage(f"p{n}", f'"Town"\n{text}'))
    return made


def ids(results: Sequence[Sequence[Hit]]) -> list[list[str]]:
    return [[hit.passage.id for hit in hits] for hits in results]


def scores(results: Sequence[Sequence[Hit]]) -> list[float]:
    return [hit.score for hits in results for hit in hits]


class _Tokens(grpc.ServerInterceptor):
    """Asks of every call for the token, in the header where a Milvus server looks for it."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if dict(details.invocation_metadata).get("authorization") == self._expected:
            return continuation(details)

        def refuse(_request: Any, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")

        handler = continuation(details)
        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)


@contextmanager
def milvus_server(folder: Path, token: str | None = None) -> Iterator[str]:
    """The address of a server over `folder`; `token` as it is sent, in base64."""
    database = MilvusLite(str(folder))
    interceptors = [] if token is None else [_Tokens(token)]
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=interceptors)
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=1).wait()
        database.close()
