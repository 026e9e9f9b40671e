"""The scripted engine, alone and in the search loop, through a byte-level vocabulary."""

import pytest

from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.types import Hit, Passage, Question, StopReason
from dgpo_cli.engine.base import Sampling, TurnEnd
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec
from tiny import bpe_tokenizer

STOP = Sampling(stop=TAGS.stops)


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


def ids_of(codec, text):
    return codec.tokenizer(text, add_special_tokens=False).input_ids


def play(engine, limit=1000):
    """Events by slot until nothing is left to write."""
    events = {}
    for _ in range(limit):
        stepped = engine.step()
        if not stepped:
            return events
        for event in stepped:
            events.setdefault(event.slot, []).append(event)
    raise AssertionError("the engine does not come to an end")


def test_it_writes_the_scripts_tokens_one_a_step_with_logprob_zero(codec):
    engine = ScriptedEngine(codec, lambda prompt, read: f"ü say {prompt}!")
    first, second = engine.open(ids_of(codec, "one"), STOP), engine.open(ids_of(codec, "twenty"), STOP)
    assert {event.slot for event in engine.step()} == {first, second}
    rest = play(engine)
    written = [i for event in rest[second] for i in event.token_ids]
    assert written == ids_of(codec, "ü say twenty!")[1:]
    assert all(event.logprobs == (0.0,) for events in rest.values() for event in events)
    assert [event.end for event in rest[second]] == [None] * (len(written) - 1) + [TurnEnd.STOP]


def test_a_turn_ends_with_the_token_that_completes_a_stop_string(codec):
    engine = ScriptedEngine(codec, lambda prompt, read: "<search> a</search>\n\nnever written")
    engine.open(ids_of(codec, "q"), STOP)
    events = play(engine)[0]
    text = codec.decode([i for event in events for i in event.token_ids])
    assert text.startswith("<search> a</search>") and "never" not in text
    assert events[-1].end is TurnEnd.STOP


def test_the_token_limit_and_the_capacity_end_a_turn_by_length(codec):
    long = "word " * 50
    engine = ScriptedEngine(codec, lambda prompt, read: long, capacity=12)
    limited = engine.open(ids_of(codec, "q")[:1], Sampling(max_new_tokens=3))
    full = engine.open([5] * 10, Sampling())
    events = play(engine)
    assert [len(events[limited]), len(events[full])] == [3, 2]
    assert events[limited][-1].end is events[full][-1].end is TurnEnd.LENGTH


def test_the_script_sees_what_was_appended_after_each_turn(codec):
    seen = []

    def script(prompt, read):
        seen.append((prompt, list(read)))
        return "x"

    engine = ScriptedEngine(codec, script)
    slot = engine.open(ids_of(codec, "prompt"), STOP)
    for text in ("first é", "second"):
        play(engine)
        engine.extend(slot, ids_of(codec, text))
    assert seen == [("prompt", []), ("prompt", ["first é"]), ("prompt", ["first é", "second"])]


def test_misuse_is_refused_as_by_the_real_engine(codec):
    engine = ScriptedEngine(codec, lambda prompt, read: "abc def", capacity=16)
    with pytest.raises(ValueError, match="slot of 16"):
        engine.open([5] * 16, STOP)
    slot = engine.open([5], STOP)
    with pytest.raises(ValueError, match="middle of a turn"):
        engine.extend(slot, [5])
    play(engine)
    with pytest.raises(ValueError, match="no room"):
        engine.extend(slot, [5] * 16)
    engine.close(slot)
    assert engine.open_slots == 0


def test_scripts_by_question_fit_exactly_one_prompt():
    script = turns_by_question({"river": ["a", "b"], "town": ["c"]})
    assert script("the river?", ["x"]) == "b"
    with pytest.raises(ValueError, match="2 of 2 scripts"):
        script("river town", [])
    with pytest.raises(ValueError, match="0 of 2 scripts"):
        script("sea", [])
    with pytest.raises(ValueError, match="1 turns, turn 2"):
        script("town", ["x"])


def test_an_episode_of_the_loop_keeps_the_scripts_tokens(codec):
    turns = ["<think> é</think><search> Vesapo</search>", "no action", "<answer> north</answer>"]
    passage = Passage.from_title("1", "Vesapo", "It lies in the north.")

    class Fixed:
        def search(self, queries, k):
            return [[Hit(passage, 1.0, 1)] for _ in queries]

    engine = ScriptedEngine(codec, turns_by_question({"Where is Vesapo": turns}))
    question = Question("q", "Where is Vesapo", ("north",), "set")
    (trajectory,) = run_episodes(
        [(question, 0)], engine=engine, codec=codec, retriever=Fixed(), settings=RolloutSettings(temperature=0)
    )
    written = [token for token, own in zip(trajectory.token_ids, trajectory.written, strict=True) if own]
    assert written == [token for turn in turns for token in ids_of(codec, turn)]
    assert (trajectory.answer, trajectory.stop, trajectory.turns) == ("north", StopReason.ANSWERED, 3)
    assert [call.query for call in trajectory.searches] == ["Vesapo"]
    assert trajectory.invalid_actions == 1 and engine.open_slots == 0
