"""A teacher that knows which passages answer a question, and demonstrates how to find and read them.

It searches for one supporting passage after the other by its title: one that the question names, then one that was
mentioned in what was read, the one that holds the answer last. A title that neither suggests is not searched for. Every
thought after a search quotes the sentence on which the next step rests. It knows nothing but titles and answers, so
these are its limits: a query is a title and never a description; the quoted sentence is the one that holds the words,
which need not be the one that states the fact; of a comparison it quotes how the passages begin; and where the answer
was not read, it says so and is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dgpo_cli.core.text import contains_answer, normalize_answer, text_key
from dgpo_cli.core.types import Passage, Question

NOT_FOUND = "unknown"
_MAX_WORDS = 30  # ours, of a quotation
_NAMED = 0.5  # ours, share of a title's words that make the question name it
_RESULT = re.compile(
    r'Doc \d+\(Title: "(?P<title>.*?)"\) (?P<text>.*?)(?=\nDoc \d+\(Title: |</information>|\Z)', re.DOTALL
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\w\"'(])")
_BRACKETS = re.compile(r"\s*\([^()]*\)\s*$")
_CHOICES = ("yes", "no")


def turn(question: Question, read: Sequence[str]) -> str:
    """The next turn, after the observations `read`. The question names supporting titles."""
    passages = [passages_in(observation) for observation in read]
    seen: list[Passage] = []
    sought: list[str] = []
    title = _next_title(question, seen, sought)
    for found in passages:
        sought += [] if title is None else [title]
        seen += found
        title = _next_title(question, seen, sought)
    return _answer(question, seen) if title is None else _search(seen, title)


def step_text(think: str, action: str, content: str) -> str:
    """A turn in the agent's text."""
    thought = f"<think> {think} </think>\n" if think else ""
    return f"{thought}<{action}> {content} </{action}>"


def passages_in(observation: str) -> list[Passage]:
    """The passages that an observation shows, as far as it shows them."""
    return [Passage.from_title("", found["title"], found["text"].strip()) for found in _RESULT.finditer(observation)]


def query(title: str) -> str:
    """A title without what stands in brackets behind it: nobody who asks can know it."""
    return _BRACKETS.sub("", title).strip() or title


def _next_title(question: Question, seen: Sequence[Passage], sought: Sequence[str]) -> str | None:
    """The supporting title to look up; None where all were, were found on the way, or nothing suggests them."""
    found = {text_key(passage.title) for passage in seen}
    left = [t for t in dict.fromkeys(question.supporting_titles) if t not in sought and text_key(t) not in found]
    asked = {*normalize_answer(question.text).split()}

    def rank(title: str) -> tuple[bool, bool, bool, float]:
        words = normalize_answer(query(title)).split()
        named = sum(word in asked for word in words) / max(1, len(words))
        grounded = named >= _NAMED or _mention(title, seen) is not None
        return grounded, named == 1.0, not contains_answer(title, question.answers), named

    best = max(left, key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def _search(seen: Sequence[Passage], title: str) -> str:
    wanted = query(title)
    if not seen:
        return step_text(f"I need to find out about {wanted}.", "search", wanted)
    mention = _mention(title, seen)
    if mention is not None:
        return step_text(f'It says: "{mention}" So I look up {wanted}.', "search", wanted)
    return step_text(f'It says: "{_quoted(_beginning(seen[-1]), ())}" Next I look up {wanted}.', "search", wanted)


def _answer(question: Question, seen: Sequence[Passage]) -> str:
    answer = next((a for a in question.answers if contains_answer(" ".join(p.contents for p in seen), [a])), None)
    gold = {text_key(title) for title in question.supporting_titles}
    supporting = [passage for passage in seen if text_key(passage.title) in gold]
    if answer is None and normalize_answer(question.answers[0]) in _CHOICES and len(supporting) >= len(gold):
        answer = question.answers[0]
    if answer is None:
        return step_text("The results do not say it.", "answer", NOT_FOUND)
    # The last of the supporting passages that holds it; what is read on the way may hold it by chance.
    for passage in [*reversed(supporting), *reversed(seen)]:
        if (sentence := _sentence_with(passage, answer)) is not None:
            return step_text(f'It says: "{sentence}" So the answer is {answer}.', "answer", answer)
    told = " ".join(f'"{_quoted(_beginning(passage), ())}"' for passage in supporting[-2:])
    return step_text(f"It says: {told} So the answer is {answer}." if told else f"It is {answer}.", "answer", answer)


def _mention(title: str, seen: Sequence[Passage]) -> str | None:
    """The sentence, last read first, that names a title."""
    for passage in reversed(seen):
        if (sentence := _sentence_with(passage, query(title))) is not None:
            return sentence
    return None


def _sentence_with(passage: Passage, phrase: str) -> str | None:
    for sentence in _SENTENCE.split(passage.text):
        if contains_answer(sentence, [phrase]):
            return _quoted(sentence, normalize_answer(phrase).split())
    return None


def _beginning(passage: Passage) -> str:
    return _SENTENCE.split(passage.text)[0]


def _quoted(sentence: str, phrase: Sequence[str]) -> str:
    """A sentence, or of a long one the words around `phrase`; without double quotes, which would end the quotation."""
    words = " ".join(sentence.replace('"', "'").split()).split(" ")
    if len(words) <= _MAX_WORDS:
        return " ".join(words)
    plain = [normalize_answer(word) for word in words]
    place = next((i for i, word in enumerate(plain) if phrase and phrase[0] in word), 0)
    start = max(0, min(place + len(phrase) - _MAX_WORDS + 5, place))
    return " ".join(words[start : start + _MAX_WORDS])
