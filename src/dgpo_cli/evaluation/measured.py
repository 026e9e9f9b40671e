"""The model that is measured: one that is loaded in this process, or one that a server has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.engine.registry import IN_PROCESS
from dgpo_cli.engine.turnwise.model_server import ModelServer
from dgpo_cli.evaluation.suite import EvalSettings
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.contents import file_digest
from dgpo_cli.models.sources import ModelSource, load_protocol, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import LoadedModel
    from dgpo_cli.retrieval.base import Retriever


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """A model in `loaded` or behind `server`; `source` has the tokenizer, the agent text, and the weights if loaded."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    protocol: Protocol
    loaded: LoadedModel | None = None
    server: ModelServer | None = None
    raw: str | None = None  # as LoadedModel.raw

    @classmethod
    def of(cls, loaded: LoadedModel) -> MeasuredModel:
        return cls(loaded.source, loaded.tokenizer, loaded.protocol, loaded=loaded, raw=loaded.raw)

    @classmethod
    def served(cls, server: ModelServer, name: str, form: str | None = None) -> MeasuredModel:
        """`name` leads to the tokenizer and the agent text of what `server` has; `form` as in `load_protocol`."""
        from dgpo_cli.models.load import load_tokenizer, untrained

        source = resolve(name)
        protocol, trained = load_protocol(source, form)
        raw = None if trained else untrained(name)
        return cls(source, load_tokenizer(source), protocol, server=server, raw=raw)

    @property
    def weights(self) -> str:
        """Identity of the weights; for a served model its name, since a server gives no more."""
        if self.loaded is None:
            assert self.server is not None
            return f"{self.server.model} at {self.server.url}"
        return weights_digest(self.loaded)

    @property
    def parameters(self) -> int | None:
        """Their number; None where a server has them."""
        return None if self.loaded is None else int(self.loaded.model.num_parameters())

    @property
    def computed_in(self) -> str | None:
        """The precision of the weights, as float32 or bfloat16; None where a server has them."""
        return None if self.loaded is None else str(self.loaded.model.dtype).removeprefix("torch.")

    def described(self, name: str) -> dict[str, Any]:
        """Its description for a record, under the name that it was requested by."""
        return {
            "name": name,
            "location": self.source.location,
            "weights": self.weights,
            "protocol": self.protocol.name,
            "parameters": self.parameters,
        }

    def engine_name(self, settings: EvalSettings) -> str:
        return settings.engine if self.server is None else "server"

    def agent(self, settings: EvalSettings, codec: Codec, retriever: Retriever, at_once: int | None) -> Agent:
        """With the engine that the settings name."""
        from dgpo_cli.agent.agent import Agent
        from dgpo_cli.engine.registry import loading_engine
        from dgpo_cli.engine.turnwise.opening import served_engine
        from dgpo_cli.models.devices import inference_dtype, training_device

        rollout, seed = settings.rollout(), settings.seed
        if self.server is not None:
            served, _ = served_engine(
                self.server, codec, settings.server, max_tokens=rollout.max_tokens, tokenizer=self.source.name
            )
            return Agent(served, codec, retriever, rollout, seed=seed)
        assert self.loaded is not None
        if settings.engine != IN_PROCESS:
            dtype = str(inference_dtype(training_device(settings.device))).removeprefix("torch.")
            engine = loading_engine(settings.engine).open(
                self.source, codec, max_tokens=rollout.max_tokens, dtype=dtype, seed=seed
            )
            return Agent(engine, codec, retriever, rollout, seed=seed)
        return Agent.of(self.loaded.model, codec, retriever, rollout, seed=seed, at_once=at_once)


def weights_digest(loaded: LoadedModel) -> str:
    """The hash of a folder's weights, or the commit of a hub model."""
    if not loaded.source.local:
        return f"{loaded.source.location}@{loaded.model.config._commit_hash}"
    digest = hashlib.sha256()
    for path in sorted(Path(loaded.source.location).glob("*.safetensors")):
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()[:16]
