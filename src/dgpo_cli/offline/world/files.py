"""The offline world as files: a corpus and QA sets like any others, and a tokenizer folder."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.types import question_to_json
from dgpo_cli.offline.world.tokenizer import build_tokenizer
from dgpo_cli.offline.world.world import World


def write_world(world: World, folder: Path) -> None:
    """`folder`/corpus.jsonl, one question file per split, and `folder`/tokenizer."""
    write_jsonl_atomic(folder / "corpus.jsonl", ({"id": p.id, "contents": p.contents} for p in world.passages))
    for split, questions in world.questions.items():
        write_jsonl_atomic(folder / f"{split}.jsonl", map(question_to_json, questions))
    build_tokenizer().save_pretrained(folder / "tokenizer")
