"""Episodes that repeat themselves end with a word, at the same token in every engine."""

import random

import pytest
from tests.tiny import bpe_tokenizer, qwen
from tests.unit.test_rollout import ANSWER, CODEC, SEARCH, Library, question, run

from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.agent.repeats import EVERY, loop_end
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.agent.transcript import outcome
from dgpo_cli.core.types import StopReason
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec

RAW = "I am a model that knows of no tags."


def some(count, seed=0):
    chance = random.Random(seed)
    return [chance.randrange(1000) for _ in range(count)]


@pytest.mark.parametrize("cycle", [1, 2, 3, 7, 16, 17, 33, 64, 65, 120, 256])
@pytest.mark.parametrize("before", [0, 5, 31, 100])
def test_a_loop_is_found_within_a_check_of_its_fourth_time(cycle, before):
    turn = some(before) + 100 * some(cycle, seed=1)
    found = loop_end(turn, 0)
    enough = before + max(64, 4 * cycle)
    assert enough <= found < enough + EVERY and found % EVERY == 0
    for seen in range(0, found, 7):  # in whatever pieces it comes
        assert loop_end(turn, seen) == found and loop_end(turn[: found - 1], seen) is None


@pytest.mark.parametrize(
    "turn",
    [
        some(4000),
        some(40) + 3 * some(64, seed=1) + some(40, seed=2),  # three times only
        some(40) + 63 * [5] + some(40, seed=2),
        20 * some(257, seed=1),  # a longer cycle
        [i % 60 for i in range(180)] + [7],
        [x for i in range(300) for x in (1, 2, i)],  # a list that counts
    ],
)
def test_text_that_says_something_else_each_time_is_no_loop(turn):
    assert loop_end(turn, 0) is None


def test_a_turn_without_an_action_that_comes_again_ends_the_episode():
    turns = [RAW, RAW, RAW, SEARCH, ANSWER]
    trajectory, _ = run(turns, stop_repeats=True)
    assert trajectory.stop is StopReason.REPEATED_TURN and outcome(trajectory).startswith("(no answer: the same turn")
    assert (trajectory.turns, trajectory.invalid_actions, trajectory.answer) == (2, 2, None)
    assert trajectory.score.total == 0
    untouched, _ = run(turns)
    assert untouched.turns == 5 and untouched.answer == "x"


def test_a_paragraph_that_is_written_again_and_again_ends_the_episode():
    told = "the river 0. town lies 1. in the north 2. "
    turns = [SEARCH, f"<think>{4 * told} {30 * f'So {told * 3}'}", ANSWER]
    assert len(CODEC.text_ids(f"So {told * 3}")) > 64
    trajectory, _ = run(turns, stop_repeats=True, max_new_tokens=2000)
    assert trajectory.stop is StopReason.LOOP and trajectory.num_written < 1000


@pytest.mark.parametrize("call", ['{"name": "search", "arguments": {}}', '{"name": "look"', "no call"])
def test_a_tool_call_that_is_none_and_comes_again_ends_the_episode_too(call):
    codec = Codec(bpe_tokenizer(chat=True), Protocol.of("tool_calls"))
    turn = f"<think>\nhm\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
    engine = ScriptedEngine(codec, lambda prompt, read: turn)
    settings = RolloutSettings(max_turns=4, stop_repeats=True)
    (made,) = run_episodes([(question(), 0)], engine=engine, codec=codec, retriever=Library(), settings=settings)
    assert made.stop is StopReason.REPEATED_TURN and (made.turns, made.invalid_actions) == (2, 2)


@pytest.mark.parametrize("cycle", [2, 3])
def test_turns_without_an_action_that_come_in_a_cycle_end_the_episode(cycle):
    """A corrected model that goes round in a few turns is as stuck as one that writes the same again."""
    turns = [f"{RAW} {number}" for number in range(cycle)]
    trajectory, _ = run([SEARCH, *turns, turns[0], SEARCH, ANSWER], stop_repeats=True, max_turns=8)
    assert trajectory.stop is StopReason.REPEATED_TURN and trajectory.answer is None
    assert (trajectory.turns, trajectory.invalid_actions) == (cycle + 2, cycle + 1)
    untouched, _ = run([SEARCH, *turns, turns[0], SEARCH, ANSWER], max_turns=8)
    assert untouched.answer == "x"


@pytest.mark.parametrize(
    "turns",
    [
        [RAW, RAW + "?", SEARCH, ANSWER],
        [RAW, SEARCH, RAW, ANSWER],  # not one after the other
        [SEARCH, SEARCH, SEARCH, ANSWER],  # an action that comes again may be meant
    ],
)
def test_other_turns_stay_as_they_are(turns):
    episodes = [run(turns, stop_repeats=stop)[0] for stop in (False, True)]
    assert episodes[0].token_ids == episodes[1].token_ids and episodes[1].answer == "x"


def test_a_turn_in_a_loop_ends_the_episode_where_it_is_found():
    turns = [SEARCH, "<think>" + 300 * " <think>", ANSWER]
    trajectory, engine = run(turns, stop_repeats=True)
    assert trajectory.stop is StopReason.LOOP and len(trajectory.searches) == 1
    assert outcome(trajectory) == "(no answer: the turn went on repeating itself)"
    assert (trajectory.turns, trajectory.invalid_actions) == (2, 1)
    assert list(trajectory.token_ids) == engine.ids[0]
    assert run(turns)[0].num_written > 5 * trajectory.num_written / 2


def test_loops_end_at_the_same_token_in_bursts():
    model = qwen(len(bpe_tokenizer()))

    def rolled(burst, **options):
        settings = RolloutSettings(temperature=0.0, max_new_tokens=300, max_tokens=500, wave=6, max_turns=1, **options)
        engine = InProcessEngine(model, CODEC, slots=6, capacity=500, burst=burst)
        pairs = [(question(i), 0) for i in range(12)]
        return list(run_episodes(pairs, engine=engine, codec=CODEC, retriever=Library(), settings=settings))

    one, several, whole = rolled(1, stop_repeats=True), rolled(8, stop_repeats=True), rolled(1)
    assert [t.token_ids for t in one] == [t.token_ids for t in several] and one != whole
    stopped = [(t, w) for t, w in zip(one, whole, strict=True) if t.stop is StopReason.LOOP]
    assert len(stopped) > 6
    for episode, longer in stopped:  # what it would have gone on to write: the same again, until its turns are full
        assert longer.token_ids[: len(episode.token_ids)] == episode.token_ids
        assert longer.num_written > episode.num_written
