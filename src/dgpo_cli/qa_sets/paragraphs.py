"""Questions that carry their paragraphs, as HotpotQA, 2WikiMultiHopQA and MuSiQue publish them: the set and its corpus.

Some of a question's paragraphs support its answer and others were chosen to distract. All of them together are the
corpus of the set; a paragraph that several questions carry is one passage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError
from dgpo_cli.qa_sets.forms import Row, at, rows
from dgpo_cli.qa_sets.load import questions_of
from dgpo_cli.qa_sets.own_names import under_flashrags_names

_FORMS = (
    '"context": [[TITLE, [SENTENCE, ...]], ...] or "paragraphs": [{"title", "paragraph_text", "is_supporting"}, ...]'
)


class Paragraph(NamedTuple):
    title: str
    text: str
    supports: bool


def are_carried(path: Path) -> bool:
    """Whether the first question of a file has paragraphs. Raises InputError for a file that cannot be read."""
    return _held(next(rows(path), ("", {}))[1]) is not None


def read(path: Path, qa_set: str) -> tuple[list[Question], list[dict[str, str]]]:
    """The questions, naming their supporting passages, and the passages {"id", "contents"} in the order of the file.

    Raises InputError naming the place of what is no question, or has no paragraphs.
    """
    passages: dict[str, str] = {}

    def named() -> Iterator[Row]:
        for place, row in rows(path):
            try:
                paragraphs = _paragraphs(row)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{at(path, place)}: its paragraphs cannot be read: {error!r}", hint=f"write them as {_FORMS}"
                ) from error
            ids = [passages.setdefault(f'"{p.title}"\n{p.text}', str(len(passages))) for p in paragraphs]
            gold = [(p.title, identity) for p, identity in zip(paragraphs, ids, strict=True) if p.supports]
            yield (
                place,
                dict(row)
                | {
                    "supporting_titles": list(dict.fromkeys(title for title, _ in gold)),
                    "supporting_ids": list(dict.fromkeys(identity for _, identity in gold)),
                },
            )

    questions = questions_of(named(), path, qa_set, qa_set)
    return questions, [{"id": identity, "contents": contents} for contents, identity in passages.items()]


def _held(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What has the paragraphs: the row, or its metadata as in FlashRAG's files."""
    for held in (row, row.get("metadata")):
        if isinstance(held, Mapping) and ("context" in held or "paragraphs" in held):
            return held
    return None


def _paragraphs(row: Mapping[str, Any]) -> list[Paragraph]:
    """Raises KeyError, TypeError or ValueError for a row without paragraphs of a known form."""
    held = _held(row)
    if held is None:
        raise ValueError("it has none")
    if "context" in held:
        supporting = under_flashrags_names({"supporting_facts": held["supporting_facts"]}).get("supporting_titles", ())
        return [_of_sentences(title, sentences, supporting) for title, sentences in _pairs(held["context"])]
    found = []
    for one in held["paragraphs"]:
        text = one["paragraph_text"] if "paragraph_text" in one else one["text"]
        found.append(Paragraph(_text(one["title"]), _text(text), one["is_supporting"] is True))
    return found


def _pairs(context: Any) -> list[tuple[Any, Any]]:
    """Title and sentences: a list of pairs, or as the hub has it a record of two lists."""
    if isinstance(context, Mapping):
        sentences = context["sentences"] if "sentences" in context else context["content"]
        return list(zip(context["title"], sentences, strict=True))
    return [(title, sentences) for title, sentences in context]


def _of_sentences(title: Any, sentences: Any, supporting: Sequence[Any]) -> Paragraph:
    if not isinstance(sentences, list):
        raise TypeError(f"{sentences!r} is no list of sentences")
    parts = [_text(sentence) for sentence in sentences]
    # HotpotQA's sentences begin with their space, 2WikiMultiHopQA's do not.
    spaced = any(part[:1].isspace() for part in parts[1:])
    return Paragraph(_text(title), ("" if spaced else " ").join(parts).strip(), title in supporting)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
