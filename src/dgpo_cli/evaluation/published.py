"""The paper's results (arXiv 2508.20324, EM), and the conditions under which a result may be compared with them.

All were had on the full sets with the Wikipedia dump of December 2018 (wiki-18), the E5 retriever, three passages a
search and up to four searches. The released code evaluates with sampling at temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dgpo_cli.qa_sets import QA_SETS, SEVEN

WIKI18_PASSAGES = 21_015_324
TOP_K = 3
SEARCHES = 4
SIZE_TOLERANCE = 0.1  # ours: a model within a tenth of a row's size is of that row's class


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """`em` per benchmark; `method` is what `dgpo kd` or `dgpo rl` call it; `repo` holds the weights where released."""

    label: str
    method: str | None
    parameters: float  # billions
    em: Mapping[str, float]
    avg: float
    repo: str | None = None


def _row(
    label: str, method: str | None, parameters: float, em: tuple[float, ...], avg: float, repo: str | None = None
) -> PublishedRow:
    return PublishedRow(label, method, parameters, dict(zip(SEVEN, em, strict=True)), avg, repo)


ROWS: tuple[PublishedRow, ...] = (
    _row(
        "student 0.5B, prompt only", None, 0.49, (0.004, 0.006, 0.007, 0.007, 0.015, 0.0, 0.0), 0.006,
        "Qwen/Qwen2.5-0.5B-Instruct",
    ),
    _row(
        "teacher 3B", None, 3.09, (0.365, 0.569, 0.393, 0.340, 0.368, 0.135, 0.298), 0.353,
        "omron-sinicx/SearchR1-ppo-qwen2.5-3b-instruct",
    ),
    _row("PPO 0.5B", "ppo", 0.49, (0.306, 0.444, 0.379, 0.205, 0.218, 0.041, 0.073), 0.238),
    _row("GKD 0.5B", "gkd", 0.49, (0.266, 0.408, 0.358, 0.216, 0.217, 0.055, 0.161), 0.240),
    _row("SeqKD 0.5B", "seqkd", 0.49, (0.331, 0.416, 0.364, 0.283, 0.273, 0.089, 0.169), 0.275),
    _row(
        "KD 0.5B", "kd", 0.49, (0.331, 0.431, 0.373, 0.286, 0.284, 0.091, 0.290), 0.298,
        "omron-sinicx/Qwen2.5-0.5B-Instruct-kd",
    ),
    _row("DistiLLM 0.5B", "distillm", 0.49, (0.333, 0.442, 0.373, 0.288, 0.270, 0.095, 0.209), 0.287),
    _row("TAID 0.5B", "taid", 0.49, (0.325, 0.427, 0.365, 0.290, 0.270, 0.079, 0.218), 0.282),
    _row(
        "DGPO 0.5B", "dgpo", 0.49, (0.378, 0.481, 0.402, 0.342, 0.303, 0.120, 0.274), 0.329,
        "omron-sinicx/DGPO-qwen2.5-0.5b",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishedArcap:
    """One row of the paper's ARCap tables on one benchmark."""

    direct: float  # EM with gold context, without thinking
    think: float
    first_hit: float
    steps: float | None = None


ARCAP: Mapping[str, Mapping[str, PublishedArcap]] = {
    label: {"nq": PublishedArcap(*nq), "musique": PublishedArcap(*musique)}
    for label, nq, musique in (
        ("student 0.5B, prompt only", (0.386, 0.034, 0.004), (0.166, 0.013, 0.052, 3.86)),
        ("teacher 3B", (0.589, 0.560, 0.682), (0.413, 0.357, 0.668, 1.60)),
        ("PPO 0.5B", (0.547, 0.581, 0.711), (0.258, 0.242, 0.568, 1.68)),
        ("KD 0.5B", (0.540, 0.544, 0.675), (0.321, 0.256, 0.570, 2.45)),
        ("DGPO 0.5B", (0.565, 0.593, 0.682), (0.312, 0.287, 0.583, 2.64)),
    )
}
ARCAP_REASONS = (  # why no result of ours can be compared with them
    "the paper published neither its gold contexts nor its two prompts",
    "it does not say whether a hit normalizes the answer",
    "its released code counts search tags, those of the correction included, not searches",
)


def row_for(*, repo: str | None, method: str | None) -> PublishedRow | None:
    """The row of a released checkpoint, else of the method that trained a model; None where the paper has neither."""
    for row in ROWS:
        if repo is not None and row.repo == repo:
            return row
    return next((row for row in ROWS if method is not None and row.method == method), None)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of a benchmark's evaluation. `passages` and `retriever` are None if a server does not name them."""

    benchmark: str
    n: int
    passages: int | None
    retriever: str | None
    top_k: int
    max_searches: int
    temperature: float
    parameters: float  # billions


def differences(row: PublishedRow, conditions: Conditions) -> list[str]:
    """Why a result is not comparable with the row; empty where it is."""
    c, reasons = conditions, []
    size = QA_SETS[c.benchmark].size
    if c.n != size:
        reasons.append(f"{c.n:,} of {size:,} questions")
    if c.passages is None:
        reasons.append("the server does not tell its corpus")
    elif c.passages != WIKI18_PASSAGES:
        reasons.append(f"another corpus ({c.passages:,} passages; the paper: wiki-18, {WIKI18_PASSAGES:,})")
    if c.retriever is not None and c.retriever != "dense":
        reasons.append(f"another retriever ({c.retriever}; the paper: E5)")
    if abs(c.parameters - row.parameters) > SIZE_TOLERANCE * row.parameters:
        reasons.append(f"another model size ({_billions(c.parameters)}; the paper: {_billions(row.parameters)})")
    if (c.top_k, c.max_searches) != (TOP_K, SEARCHES):
        reasons.append(f"top-k {c.top_k} and {c.max_searches} searches (the paper: {TOP_K} and {SEARCHES})")
    if c.temperature not in (0.0, 1.0):
        reasons.append(f"temperature {c.temperature:g} (the paper: 1 in its released code)")
    return reasons


def _billions(parameters: float) -> str:
    return f"{parameters:.2f} B" if parameters >= 0.01 else f"{parameters * 1e3:.2g} M"
