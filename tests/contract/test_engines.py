"""What every engine keeps: the one of this process, the scripted one, one that writes whole turns, one from outside."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import pytest
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.engine.base import Engine, Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.registry import ENGINES, IN_PROCESS, loading_engine, require_engine, require_engine_name
from dgpo_cli.engine.scripted import ScriptedEngine
from dgpo_cli.engine.turnwise.engine import TurnRequest, TurnwiseEngine, Written
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.sources import ModelSource

CAPACITY = 48
OUTSIDE = """
from dgpo_cli.engine.scripted import ScriptedEngine


class Parrot:
    @staticmethod
    def require():
        pass

    @staticmethod
    def open(source, codec, *, max_tokens, dtype, seed):
        return ScriptedEngine(codec, lambda prompt, read: prompt * 30, capacity=max_tokens)
"""


class Words:
    """A program that writes a long turn for whatever waits, the last to come first."""

    def __init__(self, codec: Codec) -> None:
        self._ids = codec.tokenizer("word " * 60, add_special_tokens=False).input_ids
        self._waiting: list[TurnRequest] = []

    def begin(self, turn: TurnRequest) -> None:
        self._waiting.append(turn)

    def wake(self) -> None:
        pass

    def finished(self, wanted: Container[SlotId]) -> list[tuple[SlotId, Written]]:
        turns, self._waiting = self._waiting, []
        return [(turn.slot, Written(self._ids[: turn.max_new_tokens], None, TurnEnd.LENGTH)) for turn in turns[::-1]]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(bpe_tokenizer(), DEFAULT)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "engines_of_others.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "engines_of_others:Parrot"


@pytest.fixture(params=["in process", "scripted", "turnwise", "outside"])
def engine(request: pytest.FixtureRequest, codec: Codec) -> Engine:
    if request.param == "in process":
        return InProcessEngine(qwen(len(codec.tokenizer)), codec, slots=4, capacity=CAPACITY)
    if request.param == "scripted":
        return ScriptedEngine(codec, lambda prompt, read: "word " * 60, capacity=CAPACITY)
    if request.param == "turnwise":
        return TurnwiseEngine(Words(codec), codec, capacity=CAPACITY)
    kind = loading_engine(request.getfixturevalue("outside"))
    return kind.open(ModelSource("none", "none", True), codec, max_tokens=CAPACITY, dtype="float32", seed=0)


def prompt(codec: Codec, text: str) -> list[int]:
    ids: list[int] = codec.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def turns(engine: Engine, open_slots: int) -> dict[SlotId, list[Event]]:
    """Events by slot, until every slot has ended its turn."""
    events: dict[SlotId, list[Event]] = {}
    for _ in range(1000):
        for event in engine.step():
            events.setdefault(event.slot, []).append(event)
        if sum(found[-1].end is not None for found in events.values()) == open_slots:
            return events
    raise AssertionError("a turn does not end")


def check_turn(events: Sequence[Event], limit: int) -> int:
    """How many tokens a turn has, whose events are well formed."""
    count = sum(len(event.token_ids) for event in events)
    assert 0 < count <= limit
    assert [event.end for event in events[:-1]] == [None] * (len(events) - 1) and events[-1].end is not None
    for event in events:
        assert len(event.token_ids) == len(event.logprobs) > 0
        assert all(value is None or value <= 1e-6 for value in event.logprobs)
    return count


def test_turns_end_by_their_limit_and_go_on_after_an_observation(engine: Engine, codec: Codec) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=5, seed=3, key="a")
    slots = [engine.open(prompt(codec, text), sampling) for text in ("one", "two words")]
    assert engine.capacity == CAPACITY and len(set(slots)) == 2
    events = turns(engine, 2)
    assert set(events) == set(slots)
    for slot in slots:
        check_turn(events[slot], 5)
    assert engine.step() == [], "nothing writes between turns"
    engine.extend(slots[1], prompt(codec, " read"))
    again = turns(engine, 1)
    assert set(again) == {slots[1]}
    check_turn(again[slots[1]], 5)
    for slot in slots:
        engine.close(slot)
    assert engine.step() == []


def test_no_slot_holds_more_than_its_capacity(engine: Engine, codec: Codec) -> None:
    ids = (prompt(codec, "word ") * CAPACITY)[: CAPACITY - 3]
    slot = engine.open(ids, Sampling(temperature=1.0, max_new_tokens=100, seed=3, key="a"))
    assert check_turn(turns(engine, 1)[slot], 3) <= 3
    engine.close(slot)
    with pytest.raises(ValueError, match="slot of"):
        engine.open((ids * 2)[:CAPACITY], Sampling())


def test_a_slot_in_the_middle_of_a_turn_takes_no_observation(engine: Engine, codec: Codec) -> None:
    slot = engine.open(prompt(codec, "one"), Sampling(max_new_tokens=5, key="a"))
    with pytest.raises(ValueError, match="middle of a turn"):
        engine.extend(slot, prompt(codec, "two"))
    engine.close(slot)
    assert engine.step() == []


def test_engines_are_found_by_name(outside: str) -> None:
    for name in (IN_PROCESS, *ENGINES, outside):
        require_engine_name(name)
    require_engine(IN_PROCESS)
    require_engine(outside)
    with pytest.raises(ConfigError, match="engine = 'vlm' is unknown") as caught:
        require_engine_name("vlm")
    assert "transformers, vllm" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="No module named 'engines_of_nobody'"):
        require_engine("engines_of_nobody:Engine")
