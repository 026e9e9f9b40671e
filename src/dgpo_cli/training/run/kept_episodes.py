"""A sample of the episodes that a student is trained on with `dgpo rl`, to be read later step by step.

`rollouts.jsonl` of a run folder holds a header and one trajectory a line, with the step that was trained on it and what
that step knew of each token. It is cut back with the metrics when a run goes on, so an interrupted run ends with the
same sample as an undisturbed one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.records import RecordFile, write_jsonl_atomic
from dgpo_cli.core.run_list import ROLLOUTS, ROLLOUTS_FILE
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.models.codec import Codec
from dgpo_cli.training.batch import Sample

MAX_KEPT = 1_000  # ours, episodes of a run; of the reference recipe's lengths they take about 60 MB
# Names in the file of per-token fields of a sample. The log-probabilities are those that ratios are taken to.
_FIELDS = {
    "logprobs": "behavior_logprobs",
    "teacher_logprobs": "teacher_logprobs",
    "reference_logprobs": "reference_logprobs",
    "advantages": "advantages",
    "returns": "returns",
    "values": "old_values",
}
_DIGITS = 5  # significant ones; a float32 has up to nine, which nobody reads and which double the file


_log = logging.getLogger(__name__)
_STEP = schema.record({"step": schema.whole(0)})


class KeptEpisodes:
    """`each` episodes of a step; where that makes more than MAX_KEPT in `steps` steps, of every n-th step."""

    def __init__(self, folder: Path, codec: Codec, *, each: int, steps: int) -> None:
        self.path, self.each = folder / ROLLOUTS_FILE, min(each, MAX_KEPT)
        self.every = max(1, math.ceil(steps * self.each / MAX_KEPT))
        self._meta = {"protocol": codec.protocol.to_json(), "tokenizer": codec.digest}

    def cut(self, after_step: int) -> None:
        """Drop what a killed run kept beyond its last saved step, a torn last line included."""
        if not self.path.exists():
            if after_step > 0 and self.each:
                _log.warning("%s is gone: the episodes kept before step %d are lost", self.path, after_step + 1)
            return
        with self._open() as records:
            rows = [row for row in records.made(_of_a_step) if row["step"] <= after_step]
            if len(rows) == len(records.keys):
                return
            header = records.header
        write_jsonl_atomic(self.path, [header, *rows])

    def add(self, step: int, trajectories: Sequence[Trajectory], samples: Sequence[Sample]) -> None:
        """Keep a sample of what step number `step`, from 1, is trained on; `samples` are those of `trajectories`."""
        if not self.each or (step - 1) % self.every:
            return
        count = min(self.each, len(trajectories))
        rows = [self._row(step, trajectories[i], samples[i]) for i in _spread(len(trajectories), count)]
        with self._open() as records:
            for row in rows:
                records.append(row)

    def _open(self) -> RecordFile:
        return RecordFile(self.path, key="key", schema=ROLLOUTS, meta=self._meta)

    def _row(self, step: int, trajectory: Trajectory, sample: Sample) -> dict[str, Any]:
        named = {name: getattr(sample.signals, field) for name, field in _FIELDS.items()}
        named["rewards"] = sample.rewards
        fields = {name: values for name, values in named.items() if values is not None}
        for kl, other in (("kl", "teacher_logprobs"), ("reference_kl", "reference_logprobs")):
            if other in fields:
                fields[kl] = (fields["logprobs"] - fields[other]) * sample.written
        told = trajectory.logprobs
        kept = replace(trajectory, logprobs=None if told is None else tuple(map(_short, told)))
        tokens = {name: [_short(x) for x in values.tolist()] for name, values in fields.items()}
        return {"key": f"{step}/{trajectory.key}", "step": step} | kept.to_json() | {"tokens": tokens}


def _of_a_step(row: dict[str, Any]) -> dict[str, Any]:
    schema.require(row, _STEP)
    return row


def _spread(total: int, count: int) -> list[int]:
    """`count` places spread evenly over `total`."""
    return [i * total // count for i in range(count)]


def _short(x: float) -> float:
    return float(f"{x:.{_DIGITS}g}")
