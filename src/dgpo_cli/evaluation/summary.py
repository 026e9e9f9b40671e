"""Graded episodes summed up: per QA set, per hop count, and over QA sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpo_cli.evaluation.beside_paper import PublishedEM
from dgpo_cli.evaluation.outcome import ErrorKind, Outcome
from dgpo_cli.evaluation.selective import RiskCoverage, risk_coverage
from dgpo_cli.evaluation.stats import Interval, mean_interval, pass_at_k, share_interval

_MEANS = ("f1", "substring", "searches", "turns", "written_tokens")
_KNOWN = ("format_valid", "first_hit", "answer_retrieved", "evidence_recall", "supported", "gold_supported")


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares and means. A question that was drawn several times counts once, with the mean of its draws, in `em`;
    the other means and the counts are over all draws."""

    n: int  # questions
    draws: int
    em: float
    em_interval: Interval  # Wilson's with one draw per question or no spread, else a bootstrap over questions
    pass_at: Mapping[str, float]  # by k; empty with one draw per question
    f1: float
    substring: float
    format_valid: float | None  # of the draws whose turns are known
    first_hit: float | None  # of the answerable questions, as the next two; None without one
    first_hit_interval: Interval | None
    answer_retrieved: float | None
    evidence_recall: float | None  # over the draws whose question has known gold passages
    with_gold: int  # questions that have
    supported: float | None  # of the answers that can stand in a passage, those that stand in a retrieved one
    gold_supported: float | None  # those that stand in a gold one, where these are known
    coverage: float  # share of draws that answered and did not abstain
    risk: float | None  # share of wrong answers among those
    risk_interval: Interval | None
    selective: RiskCoverage | None  # of those answers, by their confidence; None where that of one is unknown
    unanswerable: int  # questions
    abstained: float | None  # share of draws of answerable questions that abstained
    abstained_unanswerable: float | None  # the same of unanswerable questions
    searches: float
    turns: float
    written_tokens: float
    invalid_actions: int  # in all, like the counts below
    truncated_observations: int
    escaped_tags: int
    errors: Mapping[str, int]  # every kind, in order of precedence
    stops: Mapping[str, int]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Summary:
        """Sums up graded episodes of one QA set."""
        by_question: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            by_question.setdefault(outcome.question, []).append(outcome)
        groups = list(by_question.values())
        right = [(sum(o.em for o in group), len(group)) for group in groups]
        hits = [(sum(map(bool, found)), len(found)) for group in groups if (found := _known(group, "first_hit"))]
        risks = [(sum(not o.em for o in said), len(said)) for g in groups if (said := [o for o in g if o.answered])]
        errors = Counter(o.error for o in outcomes if o.error is not None)
        means = {name: _mean(getattr(o, name) for o in outcomes) for name in _MEANS}
        shares: dict[str, Any] = {name: _mean_or_none(_known(outcomes, name)) for name in _KNOWN}
        return cls(
            n=len(groups),
            draws=len(outcomes),
            em=_mean(count / n for count, n in right),
            em_interval=share_interval(right),
            pass_at=_pass_at(right),
            first_hit_interval=share_interval(hits) if hits else None,
            coverage=_mean(o.answered for o in outcomes),
            risk=_mean_or_none([not o.em for o in outcomes if o.answered]),
            risk_interval=share_interval(risks) if risks else None,
            selective=_selective(outcomes),
            unanswerable=sum(group[0].unanswerable for group in groups),
            abstained=_mean_or_none([o.abstained for o in outcomes if not o.unanswerable]),
            abstained_unanswerable=_mean_or_none([o.abstained for o in outcomes if o.unanswerable]),
            with_gold=sum(group[0].evidence_recall is not None for group in groups),
            invalid_actions=sum(o.invalid_actions for o in outcomes),
            truncated_observations=sum(o.truncated_observations for o in outcomes),
            escaped_tags=sum(o.escaped_tags for o in outcomes),
            errors={kind.value: errors[kind] for kind in ErrorKind},
            stops=dict(sorted(Counter(o.stop.value for o in outcomes).items())),
            **means,
            **shares,
        )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None


def _known(outcomes: Sequence[Outcome], name: str) -> list[float]:
    """Values of a field where there are any."""
    return [value for outcome in outcomes if (value := getattr(outcome, name)) is not None]


def _selective(outcomes: Sequence[Outcome]) -> RiskCoverage | None:
    given = [outcome for outcome in outcomes if outcome.answered]
    known = [(outcome.confidence, not outcome.em) for outcome in given if outcome.confidence is not None]
    return risk_coverage(known) if len(known) == len(given) else None


def _pass_at(groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... and the number of draws, over the questions with k draws or more."""
    most = max((n for _, n in groups), default=0)
    if most < 2:
        return {}
    ks = sorted({*(1 << power for power in range(most.bit_length())), most})
    return {str(k): _mean(pass_at_k(n, count, k) for count, n in groups if n >= k) for k in ks}


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark. Draws whose search failed are in none of the summaries."""

    outcomes: tuple[Outcome, ...]  # in the order of the questions, draws of one question together
    failed_searches: int
    failure: str | None  # cause of the first failed search
    overall: Summary
    by_hops: Mapping[int, Summary]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], failures: Sequence[str] = ()) -> Report:
        hops = sorted({o.hops for o in outcomes if o.hops is not None})
        return cls(
            outcomes=tuple(outcomes),
            failed_searches=len(failures),
            failure=failures[0] if failures else None,
            overall=Summary.of(outcomes),
            by_hops={h: Summary.of([o for o in outcomes if o.hops == h]) for h in hops},
        )

    @property
    def asked(self) -> int:
        """Draws, failed ones included."""
        return len(self.outcomes) + self.failed_searches


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The paper's average: every benchmark counts the same, whatever its size."""

    em: float
    em_interval: Interval
    pass_at: Mapping[str, float]
    f1: float
    substring: float
    format_valid: float | None  # over the benchmarks where it is known, as the next two
    first_hit: float | None
    answer_retrieved: float | None
    searches: float
    benchmarks: int
    published: PublishedEM | None


def macro_average(reports: Mapping[str, Report], published: PublishedEM | None = None) -> Average:
    """Raises ValueError without a benchmark."""
    summaries = [report.overall for report in reports.values()]
    if not summaries:
        raise ValueError("an average of no benchmark")
    means = {name: _mean(getattr(summary, name) for summary in summaries) for name in ("em", *_MEANS[:3])}
    shares: dict[str, Any] = {
        name: _mean_or_none([share for summary in summaries if (share := getattr(summary, name)) is not None])
        for name in _KNOWN[:3]
    }
    ks = [k for k in summaries[0].pass_at if all(k in summary.pass_at for summary in summaries)]
    return Average(
        **means,
        **shares,
        em_interval=mean_interval([(summary.em, summary.em_interval) for summary in summaries]),
        pass_at={k: _mean(summary.pass_at[k] for summary in summaries) for k in ks},
        benchmarks=len(summaries),
        published=published,
    )
