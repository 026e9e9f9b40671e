"""Who writes what a step trains on."""

import random

import pytest

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, Score, StopReason
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.distillm import DistiLLM
from dgpo_cli.objectives.gkd import GKD
from dgpo_cli.training.replay import ReplayBuffer
from dgpo_cli.training.source import MAX_DRAWS, Mixture, Rollouts, TeacherTrajectories, require_batch


def trajectory(name, sample=0, total=0.0, writer="teacher"):
    return Trajectory(
        question=Question(name, "?", ("x",), writer),
        token_ids=(1, 2),
        written=(False, True),
        logprobs=None,
        searches=(),
        stop=StopReason.ANSWERED,
        answer="x",
        sample=sample,
        score=Score(total, total > 0.5),
    )


class Writer:
    """Answers every question, and remembers what it was asked."""

    def __init__(self, total=lambda name, sample: 0.0, name="student"):
        self.asked, self.total, self.name = [], total, name

    def __call__(self, pairs):
        self.asked.append([(q.id, sample) for q, sample in pairs])
        return [trajectory(q.id, sample, self.total(q.id, sample), self.name) for q, sample in pairs]


def mixture(objective, *, count=400, replay=None, roll_teacher=None):
    stored = TeacherTrajectories([trajectory(f"q{i}") for i in range(count)], count, seed=1)
    writer = Writer()
    return Mixture(stored, objective, roll=writer, roll_teacher=roll_teacher, replay=replay), writer


def names(trajectories):
    return {t.question.id for t in trajectories}


def test_the_student_takes_its_share_of_the_places_and_answers_their_questions():
    source, writer = mixture(GKD(GKD.Config(student_share=0.3)))
    first, again, other = source.next(0), source.next(0), source.next(1)
    assert len(first.by_student) == pytest.approx(120, abs=30)  # three standard deviations
    assert len(first.by_student) + len(first.by_teacher) == 400
    assert names(first.by_student).isdisjoint(names(first.by_teacher))
    assert writer.asked[0] == [(t.question.id, 0) for t in first.by_student]
    assert names(again.by_student) == names(first.by_student) != names(other.by_student)


@pytest.mark.parametrize(("share", "asked"), [(0.0, 0), (1.0, 1)])
def test_the_ends_of_the_share(share, asked):
    source, writer = mixture(GKD(GKD.Config(student_share=share)))
    step = source.next(0)
    assert (len(step.by_student), len(step.by_teacher)) == (400 * asked, 400 * (1 - asked))
    assert len(writer.asked) == asked


def test_with_seq_kd_the_teacher_writes_its_places_anew():
    teacher = Writer(name="teacher, anew")
    source, _ = mixture(GKD(GKD.Config(student_share=0.5, seq_kd=True)), roll_teacher=teacher)
    step = source.next(3)
    assert {t.question.qa_set for t in step.by_teacher} == {"teacher, anew"}
    assert teacher.asked == [[(t.question.id, 3) for t in step.by_teacher]]


def test_a_buffer_is_filled_first_and_then_drawn_from_as_the_objective_asks():
    objective = DistiLLM(DistiLLM.Config(initial_share=0.5, schedule="constant"))
    replay = ReplayBuffer(150)
    source, writer = mixture(objective, replay=replay)
    first = source.next(0)
    assert len(writer.asked[0]) == len(first.by_student) > 150 and replay.full
    second = source.next(1)
    fresh = len(writer.asked[1])
    assert fresh == pytest.approx(len(second.by_student) / 2, abs=30)
    replayed = second.by_student[fresh:]
    assert len(second.by_student) == pytest.approx(200, abs=30) and len(replayed) == len(second.by_student) - fresh
    assert len({t.key for t in replayed}) == len(replayed)
    # the buffer held the last of step 0 and took in what step 1 wrote before it was drawn from
    assert {t.sample for t in replayed} <= {0, 1} and replay.full


def test_a_buffer_comes_back_from_its_file_in_order(tmp_path):
    buffer, second = ReplayBuffer(3), ReplayBuffer(3)
    buffer.add([trajectory(f"q{i}") for i in range(5)])
    buffer.save(tmp_path / "replay.jsonl")
    second.load(tmp_path / "replay.jsonl")
    assert second.draw(2, random.Random(4)) == buffer.draw(2, random.Random(4))
    assert names(second.draw(9, random.Random(0))) == {"q2", "q3", "q4"}


def rollouts(writer, *, questions=6, batch=2, samples=3, differing=False):
    asked = [Question(f"q{i}", "?", ("x",), "set") for i in range(questions)]
    return Rollouts(asked, batch, 0, writer, samples=samples, differing=differing)


def test_every_question_of_a_step_is_tried_several_times_and_never_twice_alike():
    writer = Writer()
    source = rollouts(writer)
    steps = [source.next(step).by_student for step in range(6)]  # two epochs
    assert all(len(step) == 6 and len(names(step)) == 2 for step in steps)
    keys = [t.key for step in steps for t in step]
    assert len(set(keys)) == len(keys) == 36


def test_groups_that_all_earned_the_same_are_replaced():
    differs = ("q1", "q4")
    writer = Writer(lambda name, sample: float(name in differs and sample % 3 == 0))
    step = rollouts(writer, differing=True).next(0)
    assert names(step.by_student) <= set(differs) and len(step.by_student) == 6
    assert 1 < len(writer.asked) <= MAX_DRAWS


def test_where_nothing_differs_the_last_batch_is_taken_after_a_bounded_number():
    writer = Writer()
    step = rollouts(writer, differing=True).next(0)
    assert len(writer.asked) == MAX_DRAWS and len(step.by_student) == 6


def test_fewer_questions_than_a_batch_are_refused():
    with pytest.raises(ConfigError, match="6 questions are fewer than a batch of 7"):
        rollouts(Writer(), batch=7)
    with pytest.raises(ConfigError, match="1 question is fewer than a batch of 2"):
        require_batch([Question("1", "Who?", ("A",), "nq")], 2)
