"""The prompt that the published Search-R1 checkpoints were trained with, obtained at run time.

The text is not part of this project. It is read from the `prompt` column of the data set that the checkpoints were
trained on, checked by its SHA-256 and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dgpo_cli.core.protocol import DEFAULT, Protocol
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ModelError

DATASET = "PeterJinGo/nq_hotpotqa_train"
# The prompt for this question has this many characters and this digest (Search-R1 a14dc3a).
CHECK_QUESTION = "who wrote Dune?"
CHECK_CHARACTERS = 580
CHECK_SHA256 = "ab56b40de8dab8c9a46f72553e71526b38e0f4024c5c5ce5903da3cf14605c4e"
_MARK = "Question: "


def cache_file() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "dgpo" / "search_r1_prompt.txt"


def search_r1_protocol() -> Protocol:
    """Raises ModelError if the prompt is neither cached nor to be had, or is not the one that was expected."""
    file = cache_file()
    template = file.read_text(encoding="utf-8") if file.is_file() else None
    if template is None or not is_search_r1(template):
        template = template_of(_first_prompt())
        write_atomic(file, template)
    return Protocol(
        name="search-r1",
        prompt=template,
        correction=DEFAULT.correction,
    )


def is_search_r1(template: str) -> bool:
    """Whether a template with a {question} hole gives the known prompt for the known question."""
    prompt = template.replace("{question}", CHECK_QUESTION)
    return len(prompt) == CHECK_CHARACTERS and hashlib.sha256(prompt.encode()).hexdigest() == CHECK_SHA256


def template_of(prompt: str) -> str:
    """Cut the question out of a prompt. Raises ModelError unless the rest is the prompt that was expected."""
    head, mark, _ = prompt.rpartition(_MARK)
    template = f"{head}{mark}{{question}}\n"
    if not mark or not is_search_r1(template):
        raise ModelError(
            f"the prompt in {DATASET} is not the one that the published checkpoints were trained with",
            hint="give a local model with its protocol.json, or a raw model such as qwen-0.5b",
        )
    return template


def _first_prompt() -> str:
    from datasets import load_dataset

    try:
        row = next(iter(load_dataset(DATASET, split="train", streaming=True)))
    except Exception as error:  # the library raises errors of many families for "not reachable"
        raise ModelError(
            f"the prompt of the published checkpoints is not cached, and {DATASET} cannot be reached",
            hint="connect once; or use a local model folder with its own protocol.json",
        ) from error
    return str(row["prompt"][0]["content"])
