"""The forms in which question files come, each turned into rows of FlashRAG's form.

JSONL and JSON lists of FlashRAG's rows, or of rows as NQ-open, HotpotQA, MuSiQue and TriviaQA have them; CSV and TSV
with a header that names `question` and `answer`; SQuAD's JSON; BEIR's queries.jsonl beside its qrels/, or one of those
qrels. All may be .gz or .zst. A question that SQuAD calls impossible is unanswerable; its plausible answers are wrong
and not read. BEIR names gold passages, no answers.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from dgpo_cli.core.compression import ERRORS, decompressing, plain_name
from dgpo_cli.core.compression import SUFFIXES as PACKED
from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.schema import shown
from dgpo_cli.core.text import text_key
from dgpo_cli.core.untrusted import LARGEST_TABLE, open_file, parse_json, unmarked
from dgpo_cli.errors import InputError, reason
from dgpo_cli.qa_sets.own_names import under_flashrags_names

FORM = '{"id": ..., "question": ..., "golden_answers": [...]}'
ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = tuple(ending + packed for ending in ENDINGS for packed in ("", *PACKED))
_BEIR_QUERIES = "queries.jsonl"
_QRELS = ("test.tsv", "dev.tsv", "train.tsv")  # the first that is there is evaluated
_HEAD = 1 << 16  # bytes of a first line
_PACKED, _SMALL = 100, 1 << 24  # times smaller, where it is more than so many bytes: text packs ten times, a bomb 1,000
_QRELS_HEADER = ["query-id", "corpus-id", "score"]
_ANSWERS = ("golden_answers", "answers", "answer", "possible_answers")  # columns of a table; the last is PopQA's
_NOT_TEXT = (".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods")

Row = tuple[str, Mapping[str, Any]]  # where it stands, as "line 3"; and what it says


def rows(path: Path) -> Iterator[Row]:
    """Raises InputError naming file and line where the file is not of its form."""
    ending = Path(plain_name(path)).suffix.lower()
    if path.is_dir():
        yield from _beir(path, None)
    elif ending in _NOT_TEXT:
        raise InputError(f"{path}: questions are not read from {ending}", hint="write the table as .csv or .jsonl")
    elif ending == ".tsv" and _header(path) == _QRELS_HEADER:
        yield from _beir(path.parent.parent, path)
    elif ending in (".csv", ".tsv"):
        yield from _table(path, _delimiter(path, ending))
    elif ending == ".json":
        yield from _json(path)
    elif plain_name(path) == _BEIR_QUERIES and (path.parent / "qrels").is_dir():
        yield from _beir(path.parent, None)
    else:
        yield from ((f"line {number}", under_flashrags_names(row)) for number, row in read_jsonl(path))


def at(path: Path | str, place: str) -> str:
    """ "FILE:3" for line 3, "FILE, question 3" where a question has no line of its own."""
    return f"{path}:{place.removeprefix('line ')}" if place.startswith("line ") else f"{path}, {place}"


def what(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _first_file(candidates: Iterator[Path]) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _text(path: Path) -> str:
    try:
        with open_file(path) as raw:
            most = min(LARGEST_TABLE, max(_SMALL, _PACKED * os.fstat(raw.fileno()).st_size))
            content = decompressing(raw, path).read(most + 1)
        if len(content) > most:
            raise InputError(f"{path}: more than {most:,} bytes in it", hint="divide it, or write it as .jsonl")
        return unmarked(content).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason})", hint="convert the file to UTF-8") from error
    except ERRORS as error:
        raise InputError(f"{path}: {reason(error)}", hint="give a readable question file") from error


def _first_line(path: Path) -> str:
    """The beginning of it; "" where the file cannot be read, which is told when all of it is."""
    try:
        with open_file(path) as raw:
            return unmarked(decompressing(raw, path).readline(_HEAD)).decode("utf-8", "replace")
    except ERRORS:
        return ""


def _header(path: Path) -> list[str]:
    return _first_line(path).strip().split("\t")


def _delimiter(path: Path, ending: str) -> str:
    """Of .csv a semicolon where the first line has more of them than of commas, as spreadsheets write in Europe."""
    first = _first_line(path)
    return "\t" if ending == ".tsv" else ";" if first.count(";") > first.count(",") else ","


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    """`answer` (or answers, golden_answers) is one answer, or a JSON list of them; other columns are as in JSONL.

    Where `unanswerable` is true, none is needed.
    """
    hint, place = "give it a first line that names the columns: question, answer, and id if you have one", ""
    for place, row in _cells(path, delimiter, hint):
        answers = next((row[name] for name in _ANSWERS if name in row), None)
        held = {name: _value(name, cell) for name, cell in row.items() if name not in _ANSWERS}
        if held.get("unanswerable") is True and answers is None:
            answers = "[]"
        if "question" not in row or answers is None:
            missing = "question" if "question" not in row else "answer"
            raise InputError(f"{at(path, place)}: not a question: no {missing}", hint=hint)
        if answers[:2] in ("['", '["') and _answers(answers) == [answers]:
            wrong = f"{at(path, place)}: its answers are no list in JSON: {shown(answers)}"
            raise InputError(wrong, hint='write one answer, or a list like ["Oslo", "Rome"]')
        yield place, held | {"golden_answers": _answers(answers)}
    if not place:
        raise InputError(f"{path} holds no question", hint=hint)


def _cells(path: Path, delimiter: str, hint: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A row's cells that are not empty, by the column's name in lower case."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if twice := next((name for name, times in Counter(names).items() if name and times > 1), None):
                    raise InputError(f"{path}:{reader.line_num}: two columns are called {twice}", hint=hint)
                continue
            if len(cells) != len(names):
                wrong = f"{len(cells)} columns, the first line names {len(names)}"
                raise InputError(f"{path}:{reader.line_num}: {wrong}", hint=hint)
            yield f"line {reader.line_num}", {n: c.strip() for n, c in zip(names, cells, strict=True) if c.strip()}
    except csv.Error as error:
        quoted = 'a cell with a quotation mark in it is written like "say ""no"" twice"'
        raise InputError(f"{path}:{reader.line_num}: {error}", hint=quoted) from error


def _answers(cell: str) -> object:
    return _value("golden_answers", cell) if cell.startswith("[") else [cell]


def _value(name: str, cell: str) -> object:
    if name == "unanswerable":
        return {"true": True, "false": False}.get(cell.lower(), cell)
    if name not in ("golden_answers", "supporting_titles", "supporting_ids", "hops"):
        return cell
    try:
        return parse_json(cell, name)
    except InputError:
        return [cell] if name == "golden_answers" else cell


def _json(path: Path) -> Iterator[Row]:
    text, hint = _text(path), f"give SQuAD's JSON, or a list of {FORM}; one on each line is .jsonl"
    try:
        held = parse_json(text, str(path), hint)
    except InputError as error:
        if not isinstance(wrong := error.__cause__, JSONDecodeError):
            raise
        raise InputError(f"{path}:{wrong.lineno}: not JSON ({wrong})", hint=hint) from error
    if isinstance(held, dict) and isinstance(held.get("Data"), list):  # TriviaQA's
        held = held["Data"]
    if isinstance(held, list) and all(isinstance(row, dict) for row in held):
        yield from ((f"question {number}", under_flashrags_names(row)) for number, row in enumerate(held, start=1))
    elif isinstance(held, dict) and isinstance(held.get("data"), list):
        yield from _squad(path, held["data"])
    else:
        raise InputError(f"{path} is neither SQuAD's JSON nor a list of questions", hint=f"write a list of {FORM}")


def _squad(path: Path, articles: Sequence[Any]) -> Iterator[Row]:
    number = 0
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    number += 1
                    row = {name: asked[name] for name in ("id", "question") if name in asked}
                    impossible = asked.get("is_impossible", False)
                    given = asked.get("answers", ()) if impossible else asked["answers"]
                    answers = list(dict.fromkeys(answer["text"] for answer in given))
                    row |= {"question": asked["question"], "golden_answers": answers, "unanswerable": impossible}
                    yield f"question {number}", row
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{at(path, f'question {number}')}: not of SQuAD's form: {what(error)}",
            hint=f"or write lines like {FORM} (.jsonl)",
        ) from error


def _beir(folder: Path, qrels: Path | None) -> Iterator[Row]:
    """The queries that the qrels judge, in the order of queries.jsonl; a passage with a score above 0 is gold."""
    queries = _first_file(folder / (_BEIR_QUERIES + packed) for packed in ("", *PACKED))
    judged = qrels or _first_file(folder / "qrels" / name for name in _QRELS)
    if queries is None or judged is None:
        missing = _BEIR_QUERIES if queries is None else f"qrels/{_QRELS[0]}"
        raise InputError(f"{folder} has no {missing}", hint="give a BEIR folder: queries.jsonl and qrels/test.tsv")
    gold: dict[str, list[str]] = {}
    for place, row in _cells(judged, "\t", f"its first line is {' '.join(_QRELS_HEADER)}, tab-separated"):
        try:
            query, passage, score = (row[name] for name in _QRELS_HEADER)
            if float(score) > 0:
                gold.setdefault(text_key(query), []).append(passage)
        except (KeyError, ValueError) as error:
            raise InputError(f"{at(judged, place)}: {what(error)}", hint="write QUERY-ID, CORPUS-ID, SCORE") from error
    for number, row in read_jsonl(queries):
        identity = text_key(str(row.get("_id", row.get("id", ""))))
        if identity in gold:
            yield f"line {number}", {
                "id": identity, "question": row.get("text"), "golden_answers": [], "supporting_ids": gold[identity],
            }  # fmt: skip
