"""Short names of the paper's models (arXiv 2508.20324 and its released checkpoints)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AgentText = Literal["search-r1", "own"]
BYTES_PER_WEIGHT = 2  # published in bf16


@dataclass(frozen=True, slots=True)
class Alias:
    """`agent_text` says which prompt the checkpoint was trained with; "own" means none, so this project's is used."""

    repo: str
    parameters: float  # billions
    vocabulary: int  # width of the output layer
    agent_text: AgentText
    note: str
    licence: str | None = None  # as its hub page names it; None where the page names none
    gated: bool = False

    @property
    def gigabytes(self) -> float:
        """To download and to keep in memory."""
        return self.parameters * BYTES_PER_WEIGHT


_TRAIN_FIRST = "raw; before it teaches, train it: dgpo rl --method ppo"

ALIASES: dict[str, Alias] = {
    "qwen-3b": Alias(
        "omron-sinicx/SearchR1-ppo-qwen2.5-3b-instruct",
        3.09,
        151_936,
        "search-r1",
        "the paper's search-trained teacher",
    ),
    "qwen-3b-instruct": Alias("Qwen/Qwen2.5-3B-Instruct", 3.09, 151_936, "own", _TRAIN_FIRST, "qwen-research"),
    "qwen-0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct", 0.49, 151_936, "own", "raw student", "apache-2.0"),
    "qwen-0.5b-kd": Alias(
        "omron-sinicx/Qwen2.5-0.5B-Instruct-kd", 0.49, 151_936, "search-r1", "the paper's cold-started student"
    ),
    "dgpo-qwen-0.5b": Alias(
        "omron-sinicx/DGPO-qwen2.5-0.5b", 0.49, 151_936, "search-r1", "the paper's result", "apache-2.0"
    ),
    "qwen-7b": Alias("Qwen/Qwen2.5-7B-Instruct", 7.62, 152_064, "own", _TRAIN_FIRST, "apache-2.0"),
    "llama-8b": Alias("meta-llama/Llama-3.1-8B-Instruct", 8.03, 128_256, "own", _TRAIN_FIRST, "llama3.1", gated=True),
    "llama-1b": Alias("meta-llama/Llama-3.2-1B-Instruct", 1.24, 128_256, "own", "raw student", "llama3.2", gated=True),
}

# Published checkpoints beyond the aliases that expect the Search-R1 prompt.
SEARCH_R1_PREFIXES = (
    "PeterJinGo/SearchR1-",
    "omron-sinicx/SearchR1-",
    "omron-sinicx/DGPO-",
    "omron-sinicx/Qwen2.5-0.5B-Instruct-",
)


def expects_search_r1_prompt(repo: str) -> bool:
    return repo.startswith(SEARCH_R1_PREFIXES)
