"""What commands under `killing` import beforehand, and what is made small for them."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# What commands import where they need it; the rest is learnt from the first run.
_OF_BM25 = (
    *("bm25s", "dgpo_cli.commands.index.command", "dgpo_cli.retrieval.lexical.bm25"),
    "dgpo_cli.retrieval.index.build",
)
_OF_DENSE = (
    *(*_OF_BM25, "faiss", "torch", "safetensors.torch", "dgpo_cli.retrieval.dense.retriever"),
    "transformers.models.bert.modeling_bert",
)
_OF_MODELS = (
    *(*_OF_DENSE, "matplotlib.figure", "plotext", "transformers.models.qwen2.modeling_qwen2", "dgpo_cli.commands.kd"),
    *("dgpo_cli.evaluation.suite", "dgpo_cli.training.teacher.distill_data", "dgpo_cli.training.kd"),
    *("dgpo_cli.offline.quickstart", "dgpo_cli.training.rl", "dgpo_cli.viewing.curves"),
)


def import_beforehand(arguments: Sequence[str]) -> None:
    """So that a copy need not; and no thread yet, which would not be copied. Writers tell of what they write."""
    wanted = _OF_BM25 if "bm25" in arguments else _OF_DENSE if "dense" in arguments else _OF_MODELS
    for name in wanted:
        importlib.import_module(name)
    if wanted is not _OF_BM25:
        import faiss
        import safetensors.torch
        import torch

        torch.set_num_threads(1)
        safetensors.torch.save_file = _told(safetensors.torch.save_file, 1)
        faiss.write_index = _told(faiss.write_index, 1)
    from dgpo_cli.core.records import RecordFile

    append = RecordFile.append

    def told(self: Any, row: Any) -> None:
        sys.audit("dgpo.write", str(self.path))
        append(self, row)

    RecordFile.append = told


def import_too(names: Iterable[str]) -> None:
    """What the command was seen to import, so that no further copy has to."""
    for name in names:
        if name not in sys.modules:
            with suppress(ImportError, AttributeError):  # names that a package gives itself
                importlib.import_module(name)
    if "transformers.conversion_mapping" in sys.modules:  # half a second, once in a process
        sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("qwen2")
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a copy would lack the other threads"


def _told(write: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A writer that says so before; its argument number `place` is the file."""

    def told(*given: Any, **named: Any) -> Any:
        sys.audit("dgpo.write", str(given[place]))
        return write(*given, **named)

    return told


def small_quickstart() -> None:
    """Few steps of everything in one process, with very small models over a small world.

    Its clock goes on by being read, as one row has another's time.
    """
    from dgpo_cli.offline import stages
    from dgpo_cli.offline.quickstart import Quickstart
    from dgpo_cli.offline.world.sizes import ModelSize
    from dgpo_cli.offline.world.world import WorldSize, build_world

    size = WorldSize(demonstrations=20, train=20, validation=10, test=10)
    stages.build_world = lambda seed: build_world(seed, size)
    stages.TEACHER, stages.STUDENT = ModelSize(hidden=16, layers=1, heads=2), ModelSize(hidden=8, layers=1, heads=2)
    settings = Quickstart.default_recipe()
    settings["world"] |= {"test_questions": 3, "validation_questions": 2, "demonstrations": 10}
    settings["rollout"] |= {"max_new_tokens": 8}
    settings["distill-data"] |= {"questions": 8, "keep": "all"}
    settings["teacher"] |= {"steps": 2, "batch_size": 4, "eval_every": 2}
    settings["student"] |= {"steps": 2, "batch_size": 4, "eval_every": 2}
    settings["kd"] |= {"steps": 2, "batch_size": 4, "eval_every": 2}
    settings["rl"] |= {"steps": 2, "batch_size": 4, "eval_every": 1, "save_every": 1, "eval_limit": 2}
    Quickstart.default_recipe = staticmethod(lambda: settings)
    os.cpu_count = lambda: 1
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 1 / 1024  # a sum of which is exact, so that a step takes as long wherever a run went on from
        return now

    time.perf_counter = perf_counter


def leave_leftovers() -> None:
    """Break what is tested, to see that the test sees it."""
    from dgpo_cli.core import folders

    folders.sweep = lambda _folder: None


def small_shards() -> None:
    """Several shards of a small corpus."""
    from dgpo_cli.retrieval.dense import vectors

    vectors.SHARD = 2
