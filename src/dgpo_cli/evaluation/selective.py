"""Risk and coverage: how many of an agent's surest answers are wrong.

Answers are ordered by the mean log-probability of their tokens, which every episode has without further cost. At a
coverage of c percent the surest c percent of the answers count. AURC, the area under the curve, is the mean risk over
all coverages, one answer to all (Geifman and El-Yaniv 2017, arXiv 1705.08500; Geifman et al. 2019, arXiv 1805.08206).
An order by chance has the risk of all answers as its AURC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

COVERAGES = tuple(range(100, 0, -10))  # percent


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk by coverage, and the area under that curve."""

    aurc: float
    risk_at: Mapping[str, float]  # share of wrong answers, by coverage in percent


def risk_coverage(answers: Iterable[tuple[float, bool]]) -> RiskCoverage | None:
    """The curve of (confidence, whether it is wrong) pairs; None without any.

    Answers of equal confidence count as in random order, on average.
    """
    ordered = sorted(answers, key=lambda answer: -answer[0])
    risks: list[float] = []
    before = 0
    for _, group in groupby(ordered, key=lambda answer: answer[0]):
        wrong = [is_wrong for _, is_wrong in group]
        share = sum(wrong) / len(wrong)
        start = len(risks)
        risks += [(before + share * place) / (start + place) for place in range(1, len(wrong) + 1)]
        before += sum(wrong)
    if not risks:
        return None
    return RiskCoverage(
        aurc=sum(risks) / len(risks),
        risk_at={str(coverage): risks[-(-coverage * len(risks) // 100) - 1] for coverage in COVERAGES},
    )
