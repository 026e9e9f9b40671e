"""From a folder of documents to an agent that looks things up in them: index, questions, cold start, evaluation.

The test questions are about documents that no training question is about. The settings are those of
`recipes/learn.toml`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.progress import Bar, Progress, Say
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.untrusted import LARGEST_TABLE, read_bytes
from dgpo_cli.errors import InputError
from dgpo_cli.offline.project import PathResult
from dgpo_cli.offline.real import RealPath, RealRow
from dgpo_cli.qa_sets import QA_SETS
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.manifest import FILE as MANIFEST
from dgpo_cli.retrieval.index.update import update_index

SIDES = QA_SETS["made"].splits


@dataclass(frozen=True, slots=True)
class QuestionMaking:
    """How questions about the index are made: settings that say so, and the work, into a run folder.

    The work writes SIDES as .jsonl, but for a side without a question, and finishes the run with their counts.
    """

    settings: Mapping[str, Any]
    work: Callable[[RunDir, Progress], None]


class OwnDocuments(RealPath):
    """`documents` is the folder; all that is made lies in `folder`, also where the documents change later."""

    bench, recipe_name = "made", "learn"

    def __init__(
        self,
        folder: Path,
        documents: Path,
        making: QuestionMaking,
        *,
        seed: int,
        device: str,
        say: Say,
        bar: Bar,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, documents, seed=seed, device=device, say=say, bar=bar, settings=settings)
        self.documents, self._making = documents, making

    def run(self) -> PathResult[RealRow]:
        started = time.perf_counter()
        self.prepare()
        cold = self.cold_start(self.base())
        rows = {"cold-start": self.measure("cold-start", cold, self.recipe["world"]["quick_questions"])}
        return self._result(rows, {"cold-start": cold}, started)

    def prepare(self) -> None:
        """Index and questions. Raises InputError where the documents give no question to learn from or to test by."""
        self._index()

        def work(run: RunDir) -> None:
            with self._bar("questions", "passage") as progress:
                self._making.work(run, progress)

        summary = self._stage("questions", "make-questions", self._making.settings, work)
        counts = ", ".join(f"{count:,} {side}" for side, count in summary["questions"].items())
        self._say(f"questions: {counts}")
        for side in SIDES:
            made = self.path("questions") / f"{side}.jsonl"
            if made.is_file():
                write_atomic(self.world_folder / made.name, read_bytes(made, LARGEST_TABLE))
            elif side != "validation":
                raise InputError(
                    f"{self.documents} gave no question for the side {side!r}",
                    hint="give more documents, or --teacher MODEL, which asks about more than titles",
                )

    def _index(self) -> None:
        with self._bar("index", "passage") as progress:
            if (self.index_folder / MANIFEST).is_file():
                manifest, update = update_index(self.documents, self.index_folder, progress=progress)
            else:
                manifest, update = build_index(self.documents, self.index_folder, progress=progress)[0], None
                self._say(f"index: {manifest.passages:,} passages, {manifest.skipped:,} files were skipped")
                return
        if update is None:
            self._reuse("index")
        else:
            self._say(f"index: {update.files_read:,} of {update.files:,} files were read again")
