"""The report of `dgpo index` on its index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_cli.commands.common.options import absolute
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted, percent
from dgpo_cli.core.workspace import Workspace

if TYPE_CHECKING:
    from dgpo_cli.retrieval.index.manifest import Manifest

_SHOWN = 10  # lines or files


def show_build(console: Console, target: Path, manifest: Manifest, reused: bool) -> None:
    """Remember the index for later commands, and show its contents."""
    Workspace().remember(by="dgpo index", index=absolute(str(target)))
    for problem in manifest.problems[:_SHOWN]:
        console.warn(f"skipped {problem}")
    if manifest.skipped > len(manifest.problems):
        console.warn(f"... and {manifest.skipped - len(manifest.problems):,} more")
    _tell_words(console, manifest)
    dense = manifest.state.get("dense", manifest.state)
    if cut := dense.get("truncated_passages"):
        console.warn(f"{cut:,} passages are longer than max_length tokens and are found by their beginning only")
    if adopted := dense.get("adopted"):
        alike = "" if adopted["cosine"] is None else f", median cosine {adopted['cosine']}"
        console.info(
            f"{percent(adopted['own_row'])} of {adopted['sample']} passages encoded again lie at their row{alike}"
        )
    if "recall" in (measured := dense.get("measured", {})):
        console.info(
            f"{dense['factory']} finds {percent(measured['recall'])} of the exact best 10 "
            f"({measured['sample']} queries)"
        )
    elif "of_all_lists" in measured:
        console.info(
            f"{measured['nprobe']} lists a query find {percent(measured['of_all_lists'])} "
            "of the best 10 that all lists hold"
        )
    what = "is up to date and used as it is" if reused else f"built in {manifest.seconds:.1f} s"
    size = f"{counted(manifest.passages, 'passage')}, {manifest.bytes / 1e6:.1f} MB"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.skipped_by_kind.items())
    console.print(f"{target} {what}: {size}, {manifest.skipped:,} skipped{f': {kinds}' if kinds else ''}")
    console.result(
        {
            "passages": manifest.passages,
            "seconds": round(manifest.seconds, 3),
            "bytes": manifest.bytes,
            "skipped": manifest.skipped,
            "skipped_by_kind": manifest.skipped_by_kind,
            "problems": list(manifest.problems),
            "index": str(target),
            "retriever": manifest.retriever,
            "settings": manifest.settings,
            "state": manifest.state,
            "digest": manifest.digest,
            "reused": reused,
        }
    )


def _tell_words(console: Console, manifest: Manifest) -> None:
    """What the corpus needed of the tokenizer, where it is more than bm25s's words."""
    words = manifest.state.get("bm25", manifest.state)
    cut, share, passages = (words.get(name) for name in ("tokenizer", "uncut_share", "uncut_passages"))
    if cut == "unicode" and share:
        console.info(
            f"tokenizer unicode: {percent(share)} of the characters are of scripts without spaces between words, or "
            "marks on letters"
        )
    elif cut == "words" and passages:
        console.warn(
            f"{passages:,} passages are mostly in scripts that the tokenizer cannot cut into words (Chinese, Thai, "
            f"Hindi, ...) and are hardly found; -o {tokenizer_setting(manifest)}=unicode finds them"
        )


def tokenizer_setting(manifest: Manifest) -> str:
    """How the tokenizer's setting is called: of hybrid and milvus it belongs to their bm25."""
    return "bm25.tokenizer" if "bm25" in manifest.settings else "tokenizer"
