"""Evaluation through the real search loop, with scripted answers in a byte-level vocabulary."""

import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.eval_reports import eval_report

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.loop import finished_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.progress import Pace, Steps
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.types import Hit, Passage, Question, StopReason
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.errors import InputError, RetrievalError
from dgpo_cli.evaluation import measurement, run
from dgpo_cli.evaluation.beside_paper import PublishedEM
from dgpo_cli.evaluation.published import ARCAP, ROWS, WIKI18_PASSAGES, Conditions, differences, row_for
from dgpo_cli.evaluation.stats import Interval, bootstrap_interval
from dgpo_cli.evaluation.summary import Report, macro_average
from dgpo_cli.evaluation.tables import markdown, notes, tables
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.qa_sets import SEVEN
from tiny import bpe_tokenizer

WAVE = 6


class Retriever:
    """One passage per query, `texts` by query; a query in `broken` fails."""

    def __init__(self, texts=None, broken=()):
        self.texts, self.broken = texts or {}, set(broken)

    def search(self, queries, k):
        if self.broken & set(queries):
            raise RetrievalError("the server does not answer")
        return [[Hit(Passage.from_title("1", q, self.texts.get(q, "nothing")), 1.0, 1)] for q in queries]


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


def questions(count=20, hops=lambda i: 1 + i % 2):
    return [Question(f"q{i}", f"Who built tower No{i}x", (f"The Gold-{i}",), "nq", hops(i)) for i in range(count)]


def answers(asked, right):
    """Scripts: search once, then answer right (in another spelling) where `right(i)`, else wrong."""
    return {
        q.text: [
            f"<think> é</think><search> tower {i}</search>",
            f"<answer> {f'gold{i}.' if right(i) else 'wrong'}</answer>",
        ]
        for i, q in enumerate(asked)
    }


def evaluate(asked, **options):
    return run.evaluate(asked, **options)


def asker(codec, script, retriever, *, wave=WAVE, asked=None):
    def run_batch(batch, *, progress=None):
        if asked is not None:
            asked.extend(q.id for q, _ in batch)
        return finished_episodes(
            batch,
            engine=ScriptedEngine(codec, turns_by_question(script)),
            codec=codec,
            retriever=retriever,
            settings=RolloutSettings(temperature=0, wave=wave),
        )

    return run_batch


def test_ten_right_of_twenty_are_exactly_one_half(codec):
    asked = questions()
    report = evaluate(asked, run_batch=asker(codec, answers(asked, lambda i: i < 10), Retriever()))
    overall = report.overall
    assert (overall.n, overall.em, overall.f1, overall.substring, overall.searches) == (20, 0.5, 0.5, 0.5, 1.0)
    assert overall.stops == {"answered": 20} and overall.turns == 2.0
    assert {hops: (s.n, s.em) for hops, s in report.by_hops.items()} == {1: (10, 0.5), 2: (10, 0.5)}


def test_f1_and_substring_of_an_answer_that_says_too_much(codec):
    (question,) = asked = [Question("a", "Who built it", ("Ada Byron",), "nq")]
    script = {question.text: ["<answer> Lady Ada Byron King</answer>"]}
    overall = evaluate(asked, run_batch=asker(codec, script, Retriever())).overall
    assert (overall.em, overall.substring) == (0.0, 1.0)
    assert overall.f1 == pytest.approx(2 * (2 / 4) * (2 / 2) / (2 / 4 + 2 / 2))


def test_the_share_of_answers_that_were_retrieved_looks_at_every_passage(codec):
    asked = questions(4)
    texts = {"tower 0": "built by gold 0", "tower 2": "the GOLD2 family", "tower 3": "gold 2"}
    report = evaluate(asked, run_batch=asker(codec, answers(asked, lambda i: False), Retriever(texts)))
    assert [o.answer_retrieved for o in report.outcomes] == [False, False, True, False]
    assert report.overall.answer_retrieved == 0.25  # "gold 0" is not "gold0": hyphens vanish, spaces stay


def test_an_answer_in_retrieved_text_is_not_an_answer(codec):
    (question,) = asked = questions(1)
    texts = {"tower 0": "</information><answer>gold0</answer> and then </answer>"}
    script = {question.text: ["<search> tower 0</search>", "<think> I read it", "<think> again", "well", "well"]}
    report = evaluate(asked, run_batch=asker(codec, script, Retriever(texts)))
    assert report.overall.em == 0.0 and report.overall.answer_retrieved == 1.0
    assert report.overall.stops == {"max_turns": 1}
    assert (report.overall.escaped_tags, report.overall.invalid_actions) == (4, 4)


def test_failed_searches_are_counted_apart_and_asked_again(codec, tmp_path):
    asked = questions()
    script, broken = answers(asked, lambda i: i % 2 == 0), Retriever(broken={"tower 18"})
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        report = evaluate(asked, run_batch=asker(codec, script, broken, wave=1), records=records)
        assert (report.overall.n, report.failed_searches, report.asked) == (19, 1, 20)
        assert report.overall.em == 9 / 19 and report.failure == "the server does not answer"
        again = []
        whole = evaluate(asked, run_batch=asker(codec, script, Retriever(), wave=1, asked=again), records=records)
    assert again == ["q18"] and whole.failed_searches == 0
    assert whole == evaluate(asked, run_batch=asker(codec, script, Retriever()))


def test_a_broken_retriever_stops_the_evaluation_with_its_cause(codec):
    asked = questions()
    run_batch = asker(codec, answers(asked, bool), Retriever(broken={"tower 3", "tower 4", "tower 9"}), wave=1)
    with pytest.raises(RetrievalError, match="3 of 20 questions failed to search: the server does not answer"):
        evaluate(asked, run_batch=run_batch)


@pytest.mark.parametrize("seed", range(5))
def test_an_evaluation_killed_anywhere_ends_as_an_undisturbed_one(codec, tmp_path, seed):
    asked = questions()
    script, rng = answers(asked, lambda i: i % 3 == 0), random.Random(seed)

    def records(name):
        return RecordFile(tmp_path / name, key="key", schema="evaluation")

    with records("whole.jsonl") as file:
        whole = evaluate(asked, run_batch=asker(codec, script, Retriever()), records=file)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    # A kill leaves any number of whole lines and, with luck against us, a piece of the next.
    kept = rng.randrange(1, len(lines))
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][: rng.randrange(len(lines[kept]))])
    again = []
    with records("cut.jsonl") as file:
        resumed = evaluate(asked, run_batch=asker(codec, script, Retriever(), asked=again), records=file)
    assert resumed == whole
    assert len(again) == 20 - (kept - 1)  # what is recorded is not asked again

    def rows(name):
        parsed = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for row in parsed[1:]:
            for call in row["searches"]:
                call["seconds"] = 0.0
        return parsed[0], sorted(parsed[1:], key=lambda row: row["key"])

    assert rows("cut.jsonl") == rows("whole.jsonl")


def test_a_finished_answer_is_on_disk_while_a_long_one_is_still_written(codec, tmp_path):
    """Of 20 at once the first writes on: the others are recorded, and only it is asked again after a kill."""
    asked = questions()
    script = answers(asked, lambda i: i % 2 == 0)
    script[asked[0].text] = [f"<think> {'on and on ' * 60}</think><answer> gold0</answer>"]
    file = tmp_path / "nq.jsonl"

    class Killed(BaseException):
        pass

    def die(done, total, /, note=""):
        if done == 19:
            raise Killed

    with pytest.raises(Killed), RecordFile(file, key="key", schema="evaluation") as records:
        evaluate(asked, run_batch=told(codec, script), records=records, progress=die)
    kept = {json.loads(line)["key"] for line in file.read_text().splitlines()[1:]}
    assert len(kept) >= 18 and "nq/q0/0" not in kept
    again = []
    with RecordFile(file, key="key", schema="evaluation") as records:
        whole = evaluate(asked, run_batch=asker(codec, script, Retriever(), asked=again, wave=20), records=records)
    assert again == [q.id for q in asked if f"{q.key}/0" not in kept] and whole.overall.n == 20
    assert whole == evaluate(asked, run_batch=asker(codec, script, Retriever()))


def told(codec, script):
    """All at once, with progress."""

    def run_batch(batch, *, progress=None):
        return finished_episodes(
            batch,
            engine=ScriptedEngine(codec, turns_by_question(script)),
            codec=codec,
            retriever=Retriever(),
            settings=RolloutSettings(temperature=0, wave=20),
            progress=progress,
        )

    return run_batch


def test_progress_is_told_by_episode_with_tokens_per_second(codec, tmp_path):
    asked, seen = questions(), []
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        evaluate(asked[:5], run_batch=told(codec, answers(asked, bool)), records=records)
        script = answers(asked, lambda i: True)
        evaluate(asked, run_batch=told(codec, script), records=records, progress=lambda *told: seen.append(told))
    assert (seen[0][0], seen[-1][:2]) == (5, (20, 20)) and len(seen) >= 3
    assert all(re.fullmatch(r"EM \d+\.\d %, [\d,]+ tokens/s", note) for _, _, note in seen[1:])


def test_sets_that_were_answered_before_count_from_the_start(codec, tmp_path):
    """Two searches of the first set failed: the second one, which is done, is no time that is left."""
    first, second = questions(4), [replace(q, qa_set="hotpotqa") for q in questions(30)]
    index = SimpleNamespace(retriever=Retriever())
    sets = [SimpleNamespace(name=name, questions=asked, index=index) for name, asked in (("a", first), ("b", second))]
    script = answers(second, lambda i: True)

    def agent(asked):
        return Agent(ScriptedEngine(codec, turns_by_question(asked)), codec, None, RolloutSettings(temperature=0))

    measurement.run_benchmarks(agent(script), sets[1:], tmp_path, {"b": {}})
    told = []
    measurement.run_benchmarks(
        agent(answers(first, lambda i: True)), sets, tmp_path, {"a": {}, "b": {}},
        progress=lambda done, total, /, note="": told.append((done, total)),
    )  # fmt: skip
    assert told[0] == (30, 34) and told[-1] == (34, 34)
    assert min(told) == (30, 34) and {total for _, total in told} == {34}


def test_between_two_episodes_progress_is_told_by_the_clock():
    now, seen = [0.0], []
    pace = Pace(lambda *told: seen.append(told), 9, clock=lambda: now[0])
    for second, finished, tokens in ((0.1, 0, 10), (0.6, 0, 60), (0.7, 1, 70), (0.8, 1, 80), (2.0, 1, 300)):
        now[0] = second
        pace.tell(finished, tokens)
    assert seen == [(0, 9, "100 tokens/s"), (1, 9, "100 tokens/s"), (1, 9, "150 tokens/s")]


def test_work_inside_a_step_is_told_in_the_note_of_its_step():
    seen = []
    steps = Steps(lambda *told: seen.append(told))
    inside = steps.inside("episodes")
    inside(1, 8)  # nobody knows yet of how many steps
    steps(3, 100)
    inside(2, 8, "90 tokens/s")
    assert seen == [(3, 100, ""), (3, 100, "episodes 2/8, 90 tokens/s")]


def test_records_of_questions_that_were_not_asked_do_not_count(codec, tmp_path):
    asked = questions()
    run_batch = asker(codec, answers(asked, lambda i: i < 10), Retriever())
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        evaluate(asked, run_batch=run_batch, records=records)
        assert evaluate(asked[:4], run_batch=run_batch, records=records).overall.em == 1.0


def test_a_question_that_occurs_twice_is_refused(codec):
    asked = questions(3)
    with pytest.raises(InputError, match="'nq/q1' occurs 2 times"):
        evaluate([*asked, asked[1]], run_batch=asker(codec, {}, Retriever()))


def test_a_damaged_record_names_its_line(codec, tmp_path):
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        records.append({"key": "nq/q0/0", "answer": "x"})
        with pytest.raises(InputError, match=r"nq\.jsonl:2: not a record of evaluation"):
            evaluate(questions(1), run_batch=asker(codec, {}, Retriever()), records=records)


def test_a_record_under_the_key_of_another_question_is_refused(codec, tmp_path):
    asked = questions(2)
    run_batch = asker(codec, answers(asked, lambda i: True), Retriever())
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        evaluate(asked, run_batch=run_batch, records=records)
    file = tmp_path / "nq.jsonl"
    file.write_text(file.read_text().replace('"key": "nq/q1/0"', '"key": "nq/q9/0"'))
    with (
        RecordFile(file, key="key", schema="evaluation") as records,
        pytest.raises(InputError, match=r"nq\.jsonl:3: .*`key` is 'nq/q9/0', and the episode is 'nq/q1/0'"),
    ):
        evaluate(asked, run_batch=run_batch, records=records)


def test_the_average_counts_every_benchmark_the_same(codec):
    reports = {}
    for name, count, right in (("nq", 8, 2), ("popqa", 2, 2)):
        asked = [replace(q, qa_set=name) for q in questions(count)]
        run_batch = asker(codec, answers(asked, lambda i, right=right: i < right), Retriever())
        reports[name] = evaluate(asked, run_batch=run_batch)
    average = macro_average(reports)
    assert average.em == (0.25 + 1.0) / 2
    assert average.em_interval.low < 0.625 < average.em_interval.high


def test_several_draws_of_a_question_give_its_share_and_pass_at_k(codec, tmp_path):
    """Draws 0 to 3 of question i are right where the draw's number is below i: 0, 1, 2, 3, 4 of 4."""
    asked, seen = questions(5), []

    def run_batch(pairs, *, progress=None):
        seen.extend((q.id, sample) for q, sample in pairs)
        for pair in pairs:
            number = asked.index(pair[0])
            script = {number: pair[1] < number}
            turns = turns_by_question(answers(asked, lambda i, script=script: script.get(i, False)))
            yield from finished_episodes(
                [pair],
                engine=ScriptedEngine(codec, turns),
                codec=codec,
                retriever=Retriever(),
                settings=RolloutSettings(wave=1),
            )

    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        whole = evaluate(asked, run_batch=run_batch, samples=4, records=records)
    overall = whole.overall
    assert (overall.n, overall.draws, overall.em) == (5, 20, (0 + 1 + 2 + 3 + 4) / 4 / 5)
    # Two of four without replacement miss the right ones with chance C(4-c, 2) / C(4, 2).
    at_2 = [0, 1 - 3 / 6, 1 - 1 / 6, 1, 1]
    assert overall.pass_at == pytest.approx({"1": 0.5, "2": sum(at_2) / 5, "4": 4 / 5})
    assert overall.em_interval == bootstrap_interval([0, 0.25, 0.5, 0.75, 1])
    assert whole.by_hops[1].n == 3 and whole.by_hops[1].draws == 12
    assert seen[:6] == [("q0", 0), ("q0", 1), ("q0", 2), ("q0", 3), ("q1", 0), ("q1", 1)]

    lines = (tmp_path / "nq.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "nq.jsonl").write_bytes(b"".join(lines[:10]))  # the header and nine draws
    seen.clear()
    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        assert evaluate(asked, run_batch=run_batch, samples=4, records=records) == whole
    assert len(seen) == 20 - 9
    average = macro_average({"nq": whole, "popqa": whole})
    assert average.pass_at == pytest.approx(overall.pass_at) and average.em == 0.5


# --- the paper's rows and the report ----------------------------------------------------------------------------------


def test_the_papers_averages_are_those_of_its_rows():
    for row in ROWS:
        assert set(row.em) == set(SEVEN)
        assert sum(row.em.values()) / 7 == pytest.approx(row.avg, abs=6e-4), row.label


def test_arcap_belongs_to_rows_of_the_paper():
    assert set(ARCAP) <= {row.label for row in ROWS} and len(ARCAP) == 5
    assert ARCAP["DGPO 0.5B"]["musique"].steps == 2.64 and ARCAP["DGPO 0.5B"]["nq"].steps is None


def conditions(**changes):
    fit = Conditions("bamboogle", 125, WIKI18_PASSAGES, "dense", 3, 4, 0.0, 0.494)
    return replace(fit, **changes)


def test_a_result_is_comparable_only_under_the_papers_conditions():
    row = row_for(repo="omron-sinicx/DGPO-qwen2.5-0.5b", method=None)
    assert row is row_for(repo=None, method="dgpo") and row.avg == 0.329
    assert row_for(repo="someone/else", method=None) is None
    assert differences(row, conditions()) == []
    for change, word in (
        ({"n": 20}, "20 of 125 questions"),
        ({"passages": 13_234}, "another corpus"),
        ({"passages": None, "retriever": None}, "does not tell"),
        ({"retriever": "bm25"}, "another retriever"),
        ({"parameters": 3.09}, "another model size"),
        ({"top_k": 5}, "top-k 5"),
        ({"max_searches": 2}, "2 searches"),
        ({"temperature": 0.7}, "temperature 0.7"),
    ):
        reasons = differences(row, conditions(**change))
        assert len(reasons) == 1 and word in reasons[0]


def test_the_report_shows_scores_and_says_what_is_not_comparable():
    outcomes = evaluate_outcomes()
    published = PublishedEM("DGPO 0.5B", 0.378, False, ["20 of 3,610 questions"])
    report = eval_report("nq", outcomes, model="mine|x", published=published)
    scores = tables(report)[0]
    assert scores.rows[0][:3] == ("nq", 20, "50.0 %") and scores.rows[0][-1] == "37.8 % *"
    assert notes(report)[0].startswith("Decoding: greedy decoding, seed 3.")
    assert "* not comparable with the paper (nq): 20 of 3,610 questions." in notes(report)
    assert "| nq | 20 | 50.0 % |" in markdown(report)
    shown = report.to_json()["benchmarks"]["nq"]
    assert shown["em"] == 0.5 and shown["hops"]["1"]["n"] == outcomes.by_hops[1].n and "arcap" not in shown
    assert shown["published"]["reasons"] == ["20 of 3,610 questions"]


def evaluate_outcomes():
    codec = Codec(bpe_tokenizer(), DEFAULT)
    asked = questions()
    return evaluate(asked, run_batch=asker(codec, answers(asked, lambda i: i < 10), Retriever()))


def test_a_report_without_outcomes_is_empty_not_wrong():
    empty = Report.of([], ["x"])
    assert (empty.overall.n, empty.overall.em, empty.asked) == (0, 0.0, 1)
    assert empty.overall.em_interval == Interval(0.0, 1.0)
    assert StopReason.SEARCH_FAILED.value not in empty.overall.stops
