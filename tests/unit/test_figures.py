"""Figures as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dgpo_cli.core import figures


def test_shares_are_percent_with_one_decimal() -> None:
    assert [figures.percent(x) for x in (0.0, 0.86, 1.0, 0.12345, None)] == [
        "0.0 %",
        "86.0 %",
        "100.0 %",
        "12.3 %",
        "-",
    ]
    assert figures.percent_range(0.8391, 0.881) == "83.9-88.1 %"
    assert (figures.points(0.032), figures.points(-0.5)) == ("+3.2", "-50.0")
    assert figures.points_range(-0.003, 0.0786) == "-0.3 to +7.9"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "< 0.001"), (1.2e-14, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (1.0, "1.000"), (None, "-")],
)
def test_a_p_value_has_one_form(value: float | None, text: str) -> None:
    assert figures.p_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (125, "2 min"),
        (5940, "99 min"),
        (6001, "1 h 40 min"),
        (7200, "2 h"),
        (360000, "4 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


def test_ages_have_one_unit() -> None:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    moments = [
        "2026-11-28T11:59:55+00:00",
        "2026-11-28T11:59:05",
        "2026-11-28T11:01:00+00:00",
        "2026-11-27T12:00:00+00:00",
        "?",
    ]
    assert [figures.age(moment, now) for moment in moments] == ["now", "55 s", "59 min", "1 d", ""]


def test_the_middle_of_a_long_name_gives_way() -> None:
    assert figures.shortened("eval-0001", 9) == "eval-0001"
    assert figures.shortened("quickstart/runs/eval-dgpo", 13) == "quicks…l-dgpo"


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 passages"), (1, "1 passage"), (2, "2 passages"), (9_819, "9,819 passages")]
)
def test_what_is_counted_is_in_the_right_number(number: int, told: str) -> None:
    assert figures.counted(number, "passage") == told
