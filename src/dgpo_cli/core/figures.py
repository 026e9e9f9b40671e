"""Figures as a person reads them. JSON keeps fractions, differences of fractions and full precision."""

from __future__ import annotations

from datetime import UTC, datetime

SMALLEST_P = 0.001  # smaller p-values are shown as "below this"


def percent(share: float | None) -> str:
    """A share from 0 to 1 as text: 0.86 is "86.0 %"; None, no value, is "-"."""
    return "-" if share is None else f"{100 * share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """An interval of a share: "83.9-88.1 %"."""
    return f"{100 * low:.1f}-{100 * high:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points: "+3.2"."""
    return f"{100 * difference:+.1f}"


def points_range(low: float, high: float) -> str:
    """The interval of one: "-0.3 to +7.9"."""
    return f"{points(low)} to {points(high)}"


def p_value(value: float | None) -> str:
    """Three decimals, "< 0.001" below them, "-" for None."""
    if value is None:
        return "-"
    return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"


def counted(number: int, noun: str) -> str:
    """A number with what it counts: 1 passage, 9,819 passages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Two units at most: "42 s", "12 min", "3 h 20 min", "5 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def rate(per_second: float, unit: str) -> str:
    """Work in its own unit: "4.2 question/s", or below one a second "1.6 s/question"."""
    return f"{per_second:,.1f} {unit}/s" if per_second >= 1 else f"{1 / per_second:,.1f} s/{unit}"


def age(moment: str, now: datetime | None = None) -> str:
    """How long ago an ISO time was, its largest unit only: "3 min", "5 h", "12 d"; "" for what is no time."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return ""
    seconds = ((now or datetime.now(UTC)) - then.replace(tzinfo=then.tzinfo or UTC)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now" if seconds < 10 else f"{seconds:.0f} s"


def shortened(text: str, width: int) -> str:
    """The text in at most `width` characters: its middle is left out, since names differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
