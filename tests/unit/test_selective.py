"""Risk and coverage: the curve by hand, and the probability of an answer from the tokens to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.eval_reports import eval_report
from tests.tiny import bpe_tokenizer

from dgpo_cli.agent.loop import finished_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Passage, Question
from dgpo_cli.engine.base import Event, SlotId
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.evaluation.outcome import grade
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.evaluation.selective import risk_coverage
from dgpo_cli.evaluation.summary import Report, Summary
from dgpo_cli.evaluation.tables import tables
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec

CODEC = Codec(bpe_tokenizer(), DEFAULT)


def test_the_curve_of_four_answers_by_hand() -> None:
    """Right, wrong, right, wrong from the surest on: 0/1, 1/2, 1/3 and 2/4 of them are wrong."""
    found = risk_coverage([(-0.4, True), (-0.1, False), (-0.3, False), (-0.2, True)])
    assert found is not None and found.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    by_hand = {100: 1 / 2, 90: 1 / 2, 80: 1 / 2, 70: 1 / 3, 60: 1 / 3, 50: 1 / 2, 40: 1 / 2, 30: 1 / 2, 20: 0, 10: 0}
    assert {int(coverage): risk for coverage, risk in found.risk_at.items()} == pytest.approx(by_hand)


def test_answers_that_are_equally_sure_count_as_in_random_order() -> None:
    """Over both orders of the first two: (0 + 1) / 2 after one, then 1/2, then 2/3."""
    answers = [(0.0, True), (0.0, False), (-1.0, True)]
    found = risk_coverage(answers)
    assert found == risk_coverage([answers[1], answers[0], answers[2]])
    assert found is not None and found.aurc == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)
    assert risk_coverage([]) is None


@given(st.lists(st.tuples(st.floats(-9, 0), st.booleans()), min_size=1, max_size=40))
def test_the_whole_coverage_is_the_risk_and_no_order_is_below_the_best(answers: list[tuple[float, bool]]) -> None:
    found, best = risk_coverage(answers), risk_coverage([(-float(wrong), wrong) for _, wrong in answers])
    assert found is not None and best is not None
    assert found.risk_at["100"] == pytest.approx(sum(wrong for _, wrong in answers) / len(answers))
    assert best.aurc <= found.aurc + 1e-9
    flat = risk_coverage([(0.0, wrong) for _, wrong in answers])
    assert flat is not None and flat.aurc == pytest.approx(flat.risk_at["100"])


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("tags", "<think> a </think>\n<answer> a </answer>", "a"),  # the letter stands in the tags as well
        ("tags", "<answer>東京 é</answer>", "東京 é"),
        ("tags", "Well. <answer>\n 7\n</answer>", "7"),
        ("tool_calls", "<think>\nNo 7\n</think>\n\n No 7 \n", "No 7"),
        ("tool_calls", "42", "42"),
    ],
)
def test_the_tokens_of_an_answer(form: str, text: str, answer: str) -> None:
    codec = Codec(bpe_tokenizer(chat=True), Protocol.of(form))
    ids = codec.text_ids(text)
    turn = codec.parse(ids, ended=True)
    assert (turn.action, turn.content) == ("answer", answer)
    place = codec.answer_tokens(ids, turn)
    assert codec.decode(ids[place]).strip("\n >") == answer
    for narrower in (slice(place.start + 1, place.stop), slice(place.start, place.stop - 1)):
        assert answer not in codec.decode(ids[narrower])


def test_a_turn_that_is_no_text_counts_as_a_whole() -> None:
    ids = CODEC.text_ids("<answer>東</answer>")
    broken = [i for i in ids if CODEC.token_bytes(i) != "東".encode()[-1:]]
    assert "\ufffd" in CODEC.decode(broken)
    assert CODEC.answer_tokens(broken, CODEC.parse(broken, ended=True)) == slice(0, len(broken))
    none = CODEC.text_ids("<answer> </answer>")
    assert CODEC.answer_tokens(none, CODEC.parse(none, ended=True)) == slice(0, len(none))


class Probable:
    """A scripted engine whose tokens have the log-probabilities that `told` gives them, -0.01 for its first one on."""

    def __init__(self, turn: str, told: bool = True) -> None:
        self._engine = ScriptedEngine(CODEC, lambda prompt, read: turn)
        self._told, self.capacity, self.count = told, self._engine.capacity, 0

    def open(self, token_ids: Sequence[int], sampling: Any) -> SlotId:
        return self._engine.open(token_ids, sampling)

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        self._engine.extend(slot, token_ids)

    def close(self, slot: SlotId) -> None:
        self._engine.close(slot)

    def step(self) -> list[Event]:
        return [event._replace(logprobs=[self._next() for _ in event.token_ids]) for event in self._engine.step()]

    def _next(self) -> float | None:
        self.count += 1
        return -self.count / 100 if self._told else None


class Empty:
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(Passage("1", '"Tarn"\nA town of weavers.'), 1.0, 1)] for _ in queries]


def played(turn: str, told: bool = True) -> Trajectory:
    pairs = [(Question("q", "Who lives in Tarn?", ("weavers",), "set"), 0)]
    settings = RolloutSettings(temperature=0)
    return next(
        finished_episodes(pairs, engine=Probable(turn, told), codec=CODEC, retriever=Empty(), settings=settings)
    )


def test_an_episode_keeps_the_mean_over_the_tokens_of_its_answer() -> None:
    made = played("<think> so </think><answer> weavers </answer>")
    start, stop = (len(CODEC.text_ids(f"<think> so </think><answer> {answer}")) for answer in ("", "weavers"))
    assert CODEC.decode(CODEC.text_ids("<think> so </think><answer> weavers </answer>")[start:stop]) == "weavers"
    expected = sum(-place / 100 for place in range(start + 1, stop + 1)) / (stop - start)
    assert made.answer_logprob == pytest.approx(expected)
    assert Trajectory.from_json(made.to_json()) == made
    assert played("<answer> weavers </answer>", told=False).answer_logprob is None
    assert played("<think> so </think>").answer_logprob is None


def test_old_records_have_no_known_probability() -> None:
    row = played("<answer> weavers </answer>").to_json()
    del row["answer_logprob"]
    assert Trajectory.from_json(row).answer_logprob is None


def test_a_resumed_evaluation_has_the_same_curve_and_a_table_of_it(tmp_path: Path) -> None:
    asked = [Question(f"q{n}", f"Who lives in No{n}?", ("weavers",), "set") for n in range(4)]
    made = played("<answer> weavers </answer>")
    told = {"q0": ("weavers", -0.1), "q1": ("bakers", -0.2), "q2": ("weavers", -0.3), "q3": ("bakers", -0.4)}

    def run_batch(pairs: Any, *, progress: Any = None) -> list[Trajectory]:
        return [
            replace(made, question=q, answer=told[q.id][0], answer_logprob=told[q.id][1], sample=n) for q, n in pairs
        ]

    def run(count: int) -> Report:
        with RecordFile(tmp_path / "r.jsonl", key="key", schema="evaluation", meta={}) as records:
            return evaluate(asked[:count], run_batch=run_batch, records=records)

    run(2)
    found = run(4).overall
    assert found.selective is not None and found.selective.aurc == pytest.approx(1 / 3)
    assert found.risk == found.selective.risk_at["100"] == 1 / 2
    table = next(t for t in tables(eval_report("set", run(4))) if t.title == "Wrong among the surest answers")
    assert table.columns[:4] == ("benchmark", "AURC", "100 %", "90 %")
    assert table.rows == (
        ("set", "33.3 %", "50.0 %", "50.0 %", "50.0 %", "33.3 %", "33.3 %", *["50.0 %"] * 3, "0.0 %", "0.0 %"),
    )


def test_there_is_no_curve_where_one_answer_has_no_known_probability() -> None:
    known, unknown = played("<answer> weavers </answer>"), played("<answer> weavers </answer>", told=False)
    silent = played("<think> so </think>")
    assert Summary.of([grade(known), grade(silent)]).selective is not None, "no answer, no confidence needed"
    assert Summary.of([grade(known), grade(replace(unknown, sample=1))]).selective is None
    assert Summary.of([grade(silent)]).selective is None
    report = eval_report("set", Report.of([grade(unknown)]))
    assert "Wrong among the surest answers" not in {table.title for table in tables(report)}
