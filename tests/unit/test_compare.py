"""Two evaluations paired: records written by the real loop, differences computed by hand."""

from dataclasses import replace

import pytest

from dgpo_cli.core.records import RecordFile, write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, StopReason
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.evaluation.compare import compare, read_side
from dgpo_cli.evaluation.comparison_tables import heading, notes, table
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.evaluation.stats import mean_interval, mean_paired_difference, paired_difference, wilson

SETTINGS = {
    "seed": 0,
    "temperature": 0.0,
    "samples": 1,
    "top_k": 3,
    "max_turns": 4,
    "max_new_tokens": 500,
    "max_observation_tokens": 500,
    "max_prompt_tokens": 2048,
    "max_tokens": 4096,
    "capacity": 4096,
    "wave": 64,
}


def header(weights, *, corpus="c0", limit=None, digest="q0", **settings):
    return {
        "model": {"name": f"model {weights}", "weights": weights},
        "settings": SETTINGS | settings,
        "index": {"digest": f"index of {corpus}", "corpus_digest": corpus},
        "questions": {"digest": digest, "limit": limit},
    }


def questions(ids, name="nq"):
    return [Question(str(i), f"Who built {i}?", ("gold",), name) for i in ids]


def write(folder, meta, asked, right, samples=1):
    """`right(question id, sample)`: whether that draw is right."""

    def run_batch(pairs, *, progress=None):
        for question, sample in pairs:
            answer = "gold" if right(int(question.id), sample) else "wrong"
            yield Trajectory(question, (1, 2), (False, True), None, (), StopReason.ANSWERED, answer, sample)

    with RecordFile(folder / f"{asked[0].qa_set}.jsonl", key="key", schema="evaluation", meta=meta) as records:
        evaluate(asked, run_batch=run_batch, samples=samples, records=records)
    return folder


def compared(a, b):
    return compare(read_side(str(a)), read_side(str(b)))


def test_the_same_questions_under_the_same_settings(tmp_path):
    asked = questions(range(100))
    a = write(tmp_path / "a", header("a"), asked, lambda i, _: i < 50)
    b = write(tmp_path / "b", header("b"), asked, lambda i, _: 10 <= i < 80)
    result = compared(a, b)
    assert result.comparable and result.settings == []
    one = result.benchmarks["nq"]
    assert (one.n, one.em_a, one.em_b) == (100, 0.5, 0.7)
    assert (one.only_a, one.only_b, one.dropped_a, one.dropped_b, one.changed) == (10, 30, 0, 0, 0)
    assert one.difference == pytest.approx(0.2)
    by_hand = paired_difference({i: i < 50 for i in range(100)}, {i: 10 <= i < 80 for i in range(100)})
    assert (one.interval.low, one.interval.high) == (by_hand.interval.low, by_hand.interval.high)
    assert one.p_value == by_hand.p_value < 0.01
    assert one.em_a_interval.low == wilson(50, 100).low
    assert table(result).rows[0][4] == "+20.0" and len(notes(result)) == 1 and len(heading(result)) == 2


@pytest.mark.parametrize(
    ("change", "setting", "in_b"),
    [
        ({"seed": 1}, "seed", 1),
        ({"temperature": 1.0}, "temperature", 1.0),
        ({"top_k": 5}, "top_k", 5),
        ({"max_turns": 2}, "max_turns", 2),
        ({"max_observation_tokens": 40}, "max_observation_tokens", 40),
        ({"limit": 10}, "limit", 10),
        ({"digest": "q1"}, "questions", "q1"),
    ],
)
def test_one_setting_that_differs_is_named_before_any_number(tmp_path, change, setting, in_b):
    asked = questions(range(10))
    a = write(tmp_path / "a", header("a"), asked, lambda i, _: i < 5)
    b = write(tmp_path / "b", header("b", **change), asked, lambda i, _: i < 6)
    result = compared(a, b)
    assert not result.comparable
    ((named, value),) = [(one.setting, one.b) for one in result.settings]
    assert (named, value) == (setting, in_b)
    lines = heading(result)
    assert lines[2].startswith("NOT COMPARABLE") and f"  {setting}: " in lines[3] and f"{in_b} in B" in lines[3]
    assert table(result).rows[0][4] == "+10.0 *" and notes(result)[-1].startswith("* not comparable")


def test_another_corpus_and_one_that_nobody_tells(tmp_path):
    asked = questions(range(4))
    a = write(tmp_path / "a", header("a"), asked, lambda i, _: True)
    b = write(tmp_path / "b", header("b", corpus="c1"), asked, lambda i, _: True)
    assert [one.setting for one in compared(a, b).settings] == ["corpus", "index"]
    server = [write(tmp_path / n, header(n, corpus=None), asked, lambda i, _: True) for n in ("c", "d")]
    result = compared(*server)
    assert [one.setting for one in result.settings] == ["corpus"]
    assert "  corpus: not told by the server" in heading(result)


def test_the_number_of_another_batch_is_no_setting(tmp_path):
    asked = questions(range(4))
    a = write(tmp_path / "a", header("a"), asked, lambda i, _: True)
    b = write(tmp_path / "b", header("b", wave=8), asked, lambda i, _: True)
    assert compared(a, b).comparable


def test_questions_of_one_side_only_and_changed_ones_are_dropped_and_counted(tmp_path):
    a = write(tmp_path / "a", header("a"), questions(range(10)), lambda i, _: i < 5)
    others = questions(range(4, 17))
    others[0] = replace(others[0], answers=("gold", "else"))  # id 4
    b = write(tmp_path / "b", header("b", digest="q1"), others, lambda i, _: True)
    one = compared(a, b).benchmarks["nq"]
    assert (one.n, one.dropped_a, one.dropped_b, one.changed) == (5, 4, 7, 1)
    assert (one.em_a, one.em_b) == (0.0, 1.0)
    assert "nq: questions left out: 4 only in A, 7 only in B, 1 asked otherwise." in notes(compared(a, b))


def test_the_mean_is_over_the_sets_of_both_and_says_so(tmp_path):
    for side, share in (("a", 2), ("b", 4)):
        write(tmp_path / side, header(side), questions(range(20)), lambda i, _, share=share: i % 4 < share)
        write(tmp_path / side, header(side), questions(range(4), "popqa"), lambda i, _, share=share: i < share)
    write(tmp_path / "b", header("b"), questions(range(3), "musique"), lambda i, _: True)
    result = compared(tmp_path / "a", tmp_path / "b")
    assert list(result.benchmarks) == ["nq", "popqa"]
    assert result.avg.difference == 0.5 and result.avg.em_a == 0.5
    sides = [
        ({str(i): float(i % 4 < 2) for i in range(20)}, dict.fromkeys(map(str, range(20)), 1.0)),
        ({str(i): float(i < 2) for i in range(4)}, dict.fromkeys(map(str, range(4)), 1.0)),
    ]
    interval = mean_paired_difference(sides)[1]
    assert result.avg.interval == interval
    both = mean_interval([(0.5, wilson(10, 20)), (0.5, wilson(2, 4))])
    assert result.avg.em_a_interval == both
    assert [one.setting for one in result.settings] == ["question sets"]
    assert table(result).rows[-1][0] == "average"


def test_several_draws_count_as_shares(tmp_path):
    asked = questions(range(4))
    a = write(tmp_path / "a", header("a", samples=4), asked, lambda i, s: s < i, samples=4)  # 0, 1, 2, 3 of 4
    b = write(tmp_path / "b", header("b", samples=4), asked, lambda i, s: s < 2, samples=4)  # 2 of 4 each
    result = compared(a, b)
    one = result.benchmarks["nq"]
    assert result.comparable and one.n == 4
    assert (one.em_a, one.em_b, one.only_a, one.only_b) == (1.5 / 4, 0.5, 1, 2)


def test_a_run_is_found_by_its_name_and_its_gold_records_are_not_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "eval-0001", header("a"), questions(range(4)), lambda i, _: True)
    write_jsonl_atomic(tmp_path / "runs" / "eval-0001" / "other.jsonl", [{"schema": "trajectories", "version": 1}])
    assert list(read_side("eval-0001").benchmarks) == ["nq"]
    assert list(read_side("runs/eval-0001/nq.jsonl").benchmarks) == ["nq"]


def test_a_training_run_is_called_what_it_is(tmp_path):
    with RunDir.open("rl", {}, out=tmp_path / "rl") as run:
        meta = {"schema": "evaluation", "version": 1, "step": 3}
        write_jsonl_atomic(run.path / "validation.jsonl", [meta])
    for given in (run.path, run.path / "validation.jsonl"):
        with pytest.raises(ConfigError, match="rl is a run of `dgpo rl`, not of `dgpo eval`"):
            read_side(str(given))


def test_what_cannot_be_compared_is_said(tmp_path):
    a = write(tmp_path / "a", header("a"), questions(range(4)), lambda i, _: True)
    b = write(tmp_path / "b", header("b"), questions(range(4, 8)), lambda i, _: True)
    with pytest.raises(InputError, match="no question in common"):
        compared(a, b)
    with pytest.raises(InputError, match="holds no answers of an evaluation"):
        read_side(str(tmp_path))
    with pytest.raises(InputError, match="holds no answers of an evaluation"):
        read_side("eval-0009")
    write(tmp_path / "c", {"run": "of an earlier form"}, questions(range(4)), lambda i, _: True)
    with pytest.raises(InputError, match="does not say how it was made"):
        read_side(str(tmp_path / "c"))
    for number, protocol in enumerate((None, [1], "tags")):
        write(tmp_path / f"p{number}", header("a") | {"protocol": protocol}, questions(range(4)), lambda i, _: True)
        with pytest.raises(InputError, match=r"nq\.jsonl does not say how it was made: `protocol` is"):
            read_side(str(tmp_path / f"p{number}"))
