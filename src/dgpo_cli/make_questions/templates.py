"""Questions without a model, for corpora whose passages have titles and begin by saying what they are about.

Of one passage: a blank in its first sentence, for a name, a date or a number (`cloze`), or for what the passage is
about (`title`). Of two passages that share a name: a blank in a sentence of the second one, whose own name is left out
and told by the first one (`bridge`), or which of the two a sentence is about (`which-of`, right half of the time by
chance). Weaker than a teacher's: they repeat the passages' words, so that they are found more easily than people's
questions are, and nobody has made sure that the words around a blank allow one answer only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.text import holds_phrase, normalize_answer, share_phrase
from dgpo_cli.core.types import Passage
from dgpo_cli.make_questions.candidate import Candidate, Fate, MadeKind, NameLink, QuestionTask, subject
from dgpo_cli.make_questions.names import Span, asked_for, find, is_prose
from dgpo_cli.retrieval.corpus.split import sentences

BLANK = "____"
_UNKNOWN = "[X]"
_BEFORE, _AFTER = 12, 8  # ours, words of a sentence that are shown around a blank
_LEAST = 4  # ours, of them
_LONGEST = 300  # ours, characters of them: a "word" of a table or of data may be long


class Templates:
    """Makes questions of sentences without a model."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def write(self, tasks: Sequence[QuestionTask], progress: Progress | None = None) -> list[Candidate | Fate]:
        return [self._write(task) for task in tasks]

    def check(self, candidates: Sequence[Candidate], progress: Progress | None = None) -> list[Fate | None]:
        """Nobody reads them."""
        return [None] * len(candidates)

    def _write(self, task: QuestionTask) -> Candidate | Fate:
        draw = random.Random(f"made {self._seed} {task.key}")
        passage, link = task.drawn.passage, task.link
        if link is None:
            ways = [_cloze(passage, draw), _title(passage)]
        else:
            ways = [_bridge(passage, link, draw) if link.leads else None, _which_of(passage, link, draw)]
        made = [way for way in ways if way is not None]
        return draw.choice(made) if made else Fate.NO_NAME


def _cloze(passage: Passage, draw: random.Random) -> Candidate | None:
    sentence, about = next(_prose(passage), ""), subject(passage)
    spans = [span for span in asked_for(sentence) if not share_phrase(span.text, about)]
    if not spans:
        return None
    span = draw.choice(spans)
    shown = _around(sentence, span, BLANK)
    if shown is None:
        return None
    return Candidate(MadeKind.CLOZE, f'What fills the blank in "{shown}", about {about}?', span.text, (passage,))


def _title(passage: Passage) -> Candidate | None:
    sentence, about = next(_prose(passage), ""), subject(passage)
    span = find(sentence, about)
    shown = None if span is None else _around(sentence, span, BLANK, after=2 * _AFTER)
    if shown is None:
        return None
    return Candidate(MadeKind.TITLE, f'What fills the blank in "{shown}"?', about, (passage,))


def _bridge(passage: Passage, link: NameLink, draw: random.Random) -> Candidate | None:
    told = _sentence_with(passage, link)
    asked = _sentence_with(link.passage, link)
    if told is None or asked is None:
        return None
    (first, place), (second, name) = told, asked
    spans = [
        span
        for span in asked_for(second)
        if not share_phrase(span.text, link.name) and not holds_phrase(passage.contents, span.text)
    ]
    shown = _around(first, place, _UNKNOWN)
    if not spans or shown is None:
        return None
    span = draw.choice(spans)
    blanked = _around(_replaced(second, [(name, _UNKNOWN)]), _moved(span, name), BLANK)
    if blanked is None:
        return None
    text = (
        f'{_UNKNOWN} is left out of "{shown}", about {subject(passage)}. '
        f'What fills the blank in "{blanked}", which {"is about" if link.is_title else "names"} {_UNKNOWN} too?'
    )
    return Candidate(MadeKind.BRIDGE, text, span.text, (passage, link.passage), hidden=link.name)


def _which_of(passage: Passage, link: NameLink, draw: random.Random) -> Candidate | None:
    sentence, about, other = next(_prose(passage), ""), subject(passage), subject(link.passage)
    span = find(sentence, about)
    shown = None if span is None else _around(sentence, span, BLANK, after=2 * _AFTER)
    if shown is None or share_phrase(about, other) or holds_phrase(shown, other):
        return None
    first, second = draw.sample([about, other], 2)
    text = f'Which of {first} and {second} fills the blank in "{shown}"?'
    return Candidate(MadeKind.WHICH_OF, text, about, (passage, link.passage))


def _prose(passage: Passage) -> Iterator[str]:
    return filter(is_prose, sentences(passage.text))


def _sentence_with(passage: Passage, link: NameLink) -> tuple[str, Span] | None:
    """The first sentence with the name, and where it stands there; one of code as code."""
    return next(
        (
            (sentence, span)
            for sentence in _prose(passage)
            if (span := find(sentence, link.name, is_code=link.is_code)) is not None
        ),
        None,
    )


def _around(sentence: str, span: Span, sign: str, *, before: int = _BEFORE, after: int = _AFTER) -> str | None:
    """The words around a span, which `sign` stands for.

    None where they are too few or too long, or hold it once more.
    """
    left, right = sentence[: span.start].split(" "), sentence[span.end :].split(" ")
    head, tail = " ".join(left[-before - 1 :]), " ".join(right[: after + 1])
    shown = f"{head}{sign}{tail}".strip().replace('"', "'")
    words = normalize_answer(shown).split()
    if len(words) < _LEAST or len(shown) > _LONGEST or holds_phrase(shown.replace(sign, " "), span.text):
        return None
    return shown.rstrip(" ,;.")


def _replaced(sentence: str, signs: Sequence[tuple[Span, str]]) -> str:
    for span, sign in signs:
        sentence = sentence[: span.start] + sign + sentence[span.end :]
    return sentence


def _moved(span: Span, replaced: Span) -> Span:
    """Where a span is after another one before it was replaced by the sign of the unknown."""
    by = len(_UNKNOWN) - (replaced.end - replaced.start) if replaced.end <= span.start else 0
    return Span(span.start + by, span.end + by, span.text)
