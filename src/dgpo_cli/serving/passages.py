"""A passage as clients of an agent get it."""

from __future__ import annotations

from dgpo_cli.core.types import Hit


def shown_passage(hit: Hit) -> dict[str, str | float]:
    passage = hit.passage
    return {"id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score}
