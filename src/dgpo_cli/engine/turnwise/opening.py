"""The engine behind a server."""

from __future__ import annotations

from dgpo_cli.engine.turnwise.completions import CompletionsWriter
from dgpo_cli.engine.turnwise.engine import TurnwiseEngine
from dgpo_cli.engine.turnwise.model_server import ModelServer, ModelServerAccess, context_length
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.sources import context_of


def served_engine(
    server: ModelServer, codec: Codec, access: ModelServerAccess, *, max_tokens: int, tokenizer: str
) -> tuple[TurnwiseEngine, bool]:
    """An engine behind a server, and whether token ids are the sampled ones (else they are made from text here).

    A slot holds what the server's model, the model that `tokenizer` names, and `max_tokens` allow. Raises ModelError.
    """
    writer = CompletionsWriter(server, codec, access)
    limits = (max_tokens, context_length(server, access), context_of(tokenizer))
    capacity = min(limit for limit in limits if limit is not None)
    return TurnwiseEngine(writer, codec, capacity=capacity), writer.speaks_tokens
