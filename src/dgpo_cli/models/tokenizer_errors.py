"""Errors of a tokenizer that came with a model, as one line. The library is written in Rust, and panics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.errors import DgpoError, ModelError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HINT = "export the model again, or take another"
_LARGEST_STEP = 1 << 20  # characters of a normalizer or of a splitter, ours; SentencePiece's table of letters has half
_TOKENS_PER_BYTE = 16  # ours; byte-level BPE makes one at most, of letters that its normalizer takes apart a few more
_SPARE = 64
_LARGEST_ID = 1 << 24  # ours; the largest vocabulary known has not 300,000 tokens


@contextmanager
def tokenizer_errors(location: str, problem: str = "has a tokenizer that cannot be used") -> Iterator[None]:
    """Raises ModelError, which names the model or the file, for whatever the library raises."""
    try:
        yield
    except (DgpoError, OSError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        pass_on(error)
        reason = first_line(error)
        raise ModelError(f"{location} {problem}: {reason[:200]}", hint=_HINT) from error


def require_light(backend: Tokenizer, location: str) -> None:
    """Raises ModelError for a tokenizer that would put a book in front of every word, or that has ids full of holes."""
    for what in ("normalizer", "pre_tokenizer", "post_processor"):
        step = getattr(backend, what)
        size = 0 if step is None else len(step.__getstate__())
        if size > _LARGEST_STEP:
            raise ModelError(
                f"the tokenizer of {location} has a {what} of {size:,} characters, {_LARGEST_STEP:,} at most",
                hint=_HINT,
            )
    last = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    if last > _LARGEST_ID:  # the library looks at every id below it when it saves the tokenizer
        raise ModelError(
            f"the tokenizer of {location} has a token with the id {last:,}, {_LARGEST_ID:,} at most", _HINT
        )


def require_few(tokens: int, text: str, location: str) -> None:
    """Raises ModelError where a text became far more tokens than it has bytes."""
    size = len(text.encode())
    if tokens > _SPARE + _TOKENS_PER_BYTE * size:
        raise ModelError(f"the tokenizer of {location} makes {tokens:,} tokens of {size:,} bytes of text", hint=_HINT)
