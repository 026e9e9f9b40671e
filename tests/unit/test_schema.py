"""Declared records: the first fault is named, with what may stand there."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dgpo_cli.core.schema import (
    ANYTHING,
    FLAG,
    FieldKind,
    Mismatch,
    check,
    either,
    list_of,
    map_of,
    maybe,
    number,
    numbers,
    one_of,
    record,
    require,
    text,
    texts,
    tuple_of,
    whole,
    whole_numbers,
)
from dgpo_cli.errors import InputError, ModelError

GOOD: list[tuple[FieldKind, list[Any]]] = [
    (text(), ["", "a"]),
    (text(empty=False), ["a"]),
    (whole(0), [0, 5]),
    (number(), [0, 1.5, -2]),
    (FLAG, [True, False]),
    (maybe(text()), [None, "a"]),
    (one_of("a", "b"), ["a", "b"]),
    (either(text(), whole()), ["a", 1]),
    (list_of(text(), least=1), [["a"]]),
    (whole_numbers(0, 9), [[], [0, 9]]),
    (numbers(most=0), [[], [-1.5, 0, -3]]),
    (tuple_of(text(), maybe(whole())), [["a", None], ["a", 1]]),
    (texts(), [[], ["a", ""]]),
    (map_of(whole()), [{}, {"a": 1}]),
    (record({"a": whole()}), [{"a": 1}, {"a": 1, "b": []}]),
    (ANYTHING, [None, [[]]]),
]
BAD: list[tuple[FieldKind, Any, str]] = [
    (text(), None, "it is None, not a text"),
    (text(empty=False), " ", "it is ' ', not a non-empty text"),
    (text(longest=2), "abc", "it is 'abc', not a text of at most 2 characters"),
    (whole(0, 9), -1, "it is -1, not a whole number from 0 to 9"),
    (tuple_of(text(), whole()), ["a"], "it is a list of 1, not a list of 2 (a text, a whole number)"),
    (tuple_of(text(), whole()), ["a", "b"], "`[1]` is 'b', not a whole number"),
    (texts(), ["a", None], "`[1]` is None, not a text"),
    (whole(), True, "it is True, not a whole number"),
    (whole(), 1.0, "it is 1.0, not a whole number"),
    (whole(), 1 << 70, "it is 1180591620717411303424, not a whole number"),
    (number(), math.nan, "it is nan, not a finite number"),
    (number(), math.inf, "it is inf, not a finite number"),
    (number(), "1", "it is '1', not a finite number"),
    (number(), 10**5000, "it is a huge number, not a finite number"),
    (numbers(), [0.0, math.nan], "`[1]` is nan, not a finite number"),
    (numbers(most=0), [0, 0.5], "`[1]` is 0.5, not a finite number to 0"),
    (numbers(), [1, True], "`[1]` is True, not a finite number"),
    (whole_numbers(0, 99), [1, "a"], "`[1]` is 'a', not a whole number from 0 to 99"),
    (whole_numbers(0, 99), [100], "`[0]` is 100, not a whole number from 0 to 99"),
    (whole_numbers(0), {}, "it is a dict of 0, not a list (a whole number from 0)"),
    (list_of(text(), least=1), [], "it is a list of 0, not a list of at least 1 (a text)"),
    (list_of(record({"a": text()})), [{"a": ""}, {}], "`[1].a` is missing"),
    (map_of(FLAG), {"x": 1}, "`x` is 1, not true or false"),
    (record({"a": record({"b": FLAG})}), {"a": {"b": 0}}, "`a.b` is 0, not true or false"),
    (record({}, {"a": FLAG}), {"a": None}, "`a` is None, not true or false"),
    (record({}, other=None), {"z": 1}, "`z` is not known"),
    (record({}), [], "it is a list of 0, not an object"),
    (record({"a": FLAG}, also=lambda row: "" if row["a"] else "a is false"), {"a": False}, "a is false"),
    (one_of("a", "b"), "c", "it is 'c', not one of a, b"),
    (one_of("a"), ["a"], "it is a list of 1, not one of a"),
    (either(text(), whole()), [], "it is a list of 0, not a text or a whole number"),
]


@pytest.mark.parametrize(("kind", "values"), GOOD)
def test_what_is_of_its_kind_passes(kind: FieldKind, values: list[Any]) -> None:
    for value in values:
        assert require(value, kind) is value


@pytest.mark.parametrize(("kind", "value", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_what_is_not_is_named(kind: FieldKind, value: Any, reason: str) -> None:
    with pytest.raises(Mismatch) as raised:
        require(value, kind)
    assert str(raised.value) == reason


def test_an_error_names_the_place_and_is_of_the_callers_family() -> None:
    with pytest.raises(InputError, match=r"^run\.json: `a` is missing$") as raised:
        check({}, record({"a": FLAG}), "run.json", hint="move it away")
    assert raised.value.hint == "move it away"
    with pytest.raises(ModelError):
        check([], record({}), "x", error=ModelError)
