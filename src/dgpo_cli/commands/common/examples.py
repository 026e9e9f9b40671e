"""Questions to try on the model that a quickstart trained."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path

from dgpo_cli.errors import InputError


def example_questions(project: Path, count: int) -> list[str]:
    """The first test questions of a quickstart's folder, of many hops and of few in turn; none of any other folder."""
    from dgpo_cli.qa_sets import read_questions

    file = project / "world" / "test.jsonl"
    try:
        questions = read_questions(file) if file.is_file() else []
    except InputError:  # the one who asks does not need them
        return []
    hops = sorted({question.hops or 0 for question in questions}, reverse=True)
    by_hops = [[question.text for question in questions if (question.hops or 0) == number] for number in hops]
    return [text for text in chain.from_iterable(zip_longest(*by_hops)) if text is not None][:count]
