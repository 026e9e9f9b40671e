"""Limits and sizes of a server, all changed by `dgpo serve -o NAME=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from dgpo_cli.agent.settings import EpisodeLimits
from dgpo_cli.core.config import setting
from dgpo_cli.core.device import PRECISION, Precision
from dgpo_cli.engine.turnwise.model_server import ModelServerAccess
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.rerank import RerankConfig

_AGENTS = (
    "max_episodes",
    "max_questions_waiting",
    "max_messages",
    "max_question_chars",
    "rollout",
    "precision",
    "server",
)
_NONE_IS_ONE = ("batch_wait_ms", "cache_passages", "max_questions_waiting")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of a server, `-o NAME=VALUE` of `dgpo serve`."""

    max_body_bytes: int = field(default=8 << 20, metadata={"help": "largest request"})
    # Search-R1 asks for all that a training step waits for at once: 512 prompts with 5 samples each.
    max_queries: int = field(default=4096, metadata={"help": "queries in one request"})
    max_query_chars: int = field(default=16_384, metadata={"help": "characters of one query"})
    max_topk: int = field(default=100, metadata={"help": "passages per query"})
    default_topk: int = field(default=3, metadata={"help": "passages per query where a request names none"})
    batch_wait_ms: float = field(default=2.0, metadata={"help": "how long an idle engine waits for more queries"})
    batch_queries: int = field(default=512, metadata={"help": "queries that the engine gets in one call"})
    # A long query is one by its words: so many characters take a call about as long as the queries above.
    batch_chars: int = field(default=65_536, metadata={"help": "characters that the engine gets in one call"})
    max_waiting: int = field(default=16_384, metadata={"help": "queries that wait for the engine; more get status 503"})
    cache_passages: int = field(default=30_000, metadata={"help": "passages that the cache holds; 0 switches it off"})
    max_connections: int = field(default=1_000, metadata={"help": "open connections; more are closed at once"})
    header_timeout_s: float = field(default=10.0, metadata={"help": "for the headers of a request to arrive"})
    reply_timeout_s: float = field(default=60.0, metadata={"help": "for a client to go on reading its reply"})
    body_timeout_s: float = field(default=30.0, metadata={"help": "for a request to arrive in full"})
    stop_timeout_s: float = field(default=30.0, metadata={"help": "for requests in flight when the server is stopped"})
    rerank: RerankConfig = field(default_factory=RerankConfig, metadata={"help": "rerank.model=..., rerank.depth=50"})
    # With --model:
    max_episodes: int = field(default=32, metadata={"help": "questions that are answered at once"})
    max_questions_waiting: int = field(default=256, metadata={"help": "questions that wait; more get status 503"})
    max_messages: int = field(default=1_000, metadata={"help": "messages in one request"})
    max_question_chars: int = field(default=16_384, metadata={"help": "characters of a question"})
    rollout: EpisodeLimits = field(default_factory=EpisodeLimits, metadata={"help": "rollout.max_turns=2, ..."})
    precision: Precision = setting("auto", PRECISION, source="ours")
    server: ModelServerAccess = field(default_factory=ModelServerAccess, metadata={"help": "server.timeout_s=60, ..."})

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, int | float):  # checks itself
                continue
            least = 0 if one.name in _NONE_IS_ONE else 1
            if not least <= value < float("inf"):
                raise ConfigError(f"{one.name} = {value} is out of range", hint=f"give {least} or more")
        if self.default_topk > self.max_topk:
            raise ConfigError(
                f"default_topk = {self.default_topk} is above max_topk = {self.max_topk}",
                hint="raise max_topk, or lower default_topk",
            )

    @property
    def agents_own(self) -> list[str]:
        """Settings that say something of an agent, and were given."""
        usual = ServeSettings()
        return [name for name in _AGENTS if getattr(self, name) != getattr(usual, name)]
