"""The prompt that the published Search-R1 checkpoints were trained with, obtained at run time.

The text is not part of this project. It is read from the `prompt` column of the data set that the checkpoints were
trained on, checked by SHA-256, and kept among the hub library's cached assets.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dgpo_cli.core.hub import unreachable
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ModelError, first_line
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import DEFAULT

DATASET = "PeterJinGo/nq_hotpotqa_train"
# Characters and SHA-256 of the whole prompt for a question, from the data scripts of Search-R1 at a14dc3a.
CHECKS = {
    "who wrote Dune?": (580, "ab56b40de8dab8c9a46f72553e71526b38e0f4024c5c5ce5903da3cf14605c4e"),
    "who got the first nobel prize in physics?": (
        606,
        "1757028af757cbc387e2841b22fd67c6d9d5f73effeb9cdcc9882ad013ef11d3",
    ),
    "Where was the director of X born?": (598, "bc475bc36cdcec1e59fd92d0317a00e6d8d50c16ce714eefc5e830c4d38337d6"),
}
_HOLE = "{question}"
_MARK = "Question: "  # what stands before the question


def search_r1_protocol() -> Protocol:
    """The published prompt with this project's correction (a published checkpoint has seen another one, rarely).

    Raises ModelError if the prompt is neither cached nor available, or is not the expected one.
    """
    file = cache_file()
    template = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else None
    if template is None or not is_search_r1(template):
        template = template_of(_first_prompt())
        write_atomic(file, template)
    return Protocol(name="search-r1", prompt=template, correction=DEFAULT.correction)


def cache_file() -> Path:
    """Path among the other assets of the hub library, so that HF_HOME moves it too. Makes the folder."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("dgpo", namespace="prompts", subfolder="search-r1") / "prompt.txt"


def is_search_r1(template: str) -> bool:
    """Whether a template with one {question} hole gives every known prompt exactly."""
    if template.count(_HOLE) != 1:
        return False
    prompts = {question: template.replace(_HOLE, question) for question in CHECKS}
    return all(
        (len(prompts[question]), hashlib.sha256(prompts[question].encode()).hexdigest()) == expected
        for question, expected in CHECKS.items()
    )


def template_of(prompt: str) -> str:
    """Cut the question out of a prompt. Raises ModelError unless the rest is the prompt that was expected."""
    before, mark, _ = prompt.rpartition(_MARK)
    template = f"{before}{mark}{_HOLE}\n"
    if not mark or not is_search_r1(template):
        raise ModelError(
            f"the prompt in {DATASET} is not the one that the published checkpoints were trained with",
            hint="give a local model with its protocol.json, or a raw model such as qwen-0.5b",
        )
    return template


def _first_prompt() -> str:
    """The user message of the data set's first row; its rows differ in the question alone."""
    hint = "connect once; or use a local model folder with its own protocol.json"
    reason = unreachable()
    if reason is not None:
        raise ModelError(f"the prompt of the published checkpoints is not cached, and {reason}", hint=hint)
    from datasets import load_dataset

    try:
        row = next(iter(load_dataset(DATASET, split="train", streaming=True)))
        return str(row["prompt"][0]["content"])
    except Exception as error:  # the library raises errors of many families for "not reachable"
        reason = first_line(error)
        raise ModelError(
            f"the prompt of the published checkpoints cannot be read from {DATASET}: {reason}", hint
        ) from error
