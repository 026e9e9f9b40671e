"""The line of figures of a training run, and the episodes that it shows."""

from __future__ import annotations

from dataclasses import replace

from tests.report_runs import episode
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.types import Question
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.training.run.progress_line import EPISODE_EVERY_S, TrainingLine, best_validation, glimpse, glimpses

STEP = {
    "reward": 0.421, "entropy": 0.713, "teacher_k1_wrong": 0.0123, "behavior_kl": 9.0, "searches": 1.44,
    "valid_actions": 0.98, "tokens_per_second": 1234.4, "policy_loss": 5.0, "seconds": 3.0,
}  # fmt: skip


def test_the_line_has_the_newest_of_every_figure_and_the_best_validation() -> None:
    line = TrainingLine()
    assert str(line) == ""
    line.log({"eval_em": 0.471, "eval_score": 0.471})
    line.log({"eval_em": 0.45})
    line.log(STEP)
    assert str(line) == (
        "reward 0.42, EM 45.0 % (best 47.1 %), KL on wrong answers 0.012, entropy 0.71, 1.4 searches, "
        "98.0 % valid actions, 1,234 tokens/s"
    )
    line.log({"reward": 0.5, "eval_em": 0.6})
    assert str(line).startswith("reward 0.50, EM 60.0 % (best 60.0 %)")


def test_a_loss_is_better_where_it_is_smaller() -> None:
    line = TrainingLine()
    for value in (0.5, 0.25, 0.3):
        line.log({"nll": 1.0, "forward_kl": 0.125, "eval_nll": value})
    assert str(line) == "loss 1.000, validation loss 0.300 (best 0.250), KL 0.125"


def test_the_best_is_told_by_the_measure_that_chose_it() -> None:
    """The score of a loss is its negative: a larger score is better for both."""
    assert best_validation(-0.0994, [{"step": 1, "nll": 1.0}, {"eval_nll": 0.0994}]) == ", best validation loss 0.0994"
    assert best_validation(0.25, [{"step": 1}, {"eval_em": 0.25, "eval_nll": 2.0}]) == ", best validation EM 25.0 %"
    assert best_validation(None, [{"eval_em": 0.25}]) == ""


def test_an_episode_is_a_few_lines() -> None:
    codec = Codec(bpe_tokenizer(), TINYWORLD)
    made = episode(codec, 0, "Paris\nX")
    made = replace(made, question=replace(made.question, text="Where is it?"))
    lines = glimpse(made).splitlines()
    assert lines[0] == "an episode: Where is it?"
    assert lines[1].startswith("  searched: where is it -> 1. Lyon")
    assert lines[2:] == ["  turns without an action: 1", "  answered: Paris X (wrong, reward 0.00)"]
    assert glimpse(episode(codec, 0, "Lyon")).endswith("answered: Lyon (right, reward 1.00)")
    assert (
        glimpse(episode(codec, 0, None)).splitlines()[-1]
        == "  answered: (no answer: no turns were left) (wrong, reward 0.00)"
    )


def test_one_episode_at_once_and_then_one_in_a_while() -> None:
    codec = Codec(bpe_tokenizer(), TINYWORLD)
    made = [episode(codec, 0, "Lyon"), episode(codec, 1, "Lyon")]
    now, told = [0.0], []
    roll = glimpses(lambda pairs: made if pairs else [], told.append, clock=lambda: now[0])
    pairs: list[tuple[Question, int]] = [(made[0].question, 0)]
    assert roll([]) == [] and told == []
    assert roll(pairs) is made
    for moment in (EPISODE_EVERY_S / 2, EPISODE_EVERY_S, EPISODE_EVERY_S + 1):
        now[0] = moment
        roll(pairs)
    assert told == [glimpse(made[0])] * 2
