"""What every reward part keeps, the shipped ones and one of another package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgpo_cli.core.trajectory import Trajectory, WrittenTurn
from dgpo_cli.core.types import Hit, Passage, Question, Score, SearchCall, StopReason
from dgpo_cli.rewards import registry

QUESTION = Question("q", "who wrote Grey Harbour?", ("Mira Holt", "M. Holt"), "set")
HIT = Hit(Passage("d", '"Grey Harbour"\nGrey Harbour is a novel by Mira Holt.'), 1.0, 1)
PERFECT = Trajectory(
    question=QUESTION,
    token_ids=(1, 2, 3, 4),
    written=(False, True, False, True),
    logprobs=None,
    searches=(SearchCall("Grey Harbour", (HIT,)),),
    stop=StopReason.ANSWERED,
    answer="Mira Holt",
    turns=2,
    written_turns=(
        WrittenTurn(1, 2, "search", "Grey Harbour", thought=True, alone=True),
        WrittenTurn(3, 4, "answer", "Mira Holt", thought=True, alone=True),
    ),
)
SILENT = replace(
    PERFECT,
    searches=(),
    stop=StopReason.MAX_TOKENS,
    answer=None,
    turns=1,
    written=(False, True, True, True),
    written_turns=(WrittenTurn(1, 4, None, "", thought=False, alone=False),),
)
WRONG = replace(PERFECT, answer="Ora Lint", searches=(SearchCall("Grey Harbour", ()),))


@pytest.fixture(params=[*registry.REWARDS, "outside"])
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "outside":
        return str(request.param)
    code = "def searched(trajectory):\n    return float(bool(trajectory.searches and trajectory.searches[0].hits))\n"
    (tmp_path / "rewards_of_others.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rewards_of_others:searched"


def test_a_part_is_a_share_that_is_whole_for_a_perfect_episode_and_nothing_for_silence(name: str) -> None:
    part = registry.get(name)
    assert part(PERFECT) == 1.0
    assert part(SILENT) == 0.0
    assert 0.0 <= part(WRONG) < 1.0


def test_what_an_episode_scored_before_and_how_likely_it_was_do_not_count(name: str) -> None:
    part = registry.get(name)
    other = replace(PERFECT, logprobs=(0.0, -3.0, 0.0, -1.0), sample=3).with_score(Score(0.0, False, {}))
    assert part(other) == part(PERFECT)


def test_a_weighted_reward_counts_a_part_by_its_weight_and_keeps_the_gate(name: str) -> None:
    weighted = registry.weighted({"em": 0.0, name: 2.0})
    for episode, right in ((PERFECT, True), (WRONG, False), (SILENT, False)):
        score = weighted(episode)
        assert score.parts[name] == registry.get(name)(episode)
        assert score.total == 2.0 * score.parts[name]
        assert score.correct is right
