"""The paper's table and its ablations on the offline world: one row per method, several seeds, records that stay.

A finished row is one small JSON file, which is all that the table needs. Its digest covers the settings that it and
the rows before it had, so records made on another machine count and stale ones do not. A row is trained only where
its record, or one that starts from it, is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core import schema
from dgpo_cli.core.progress import Bar, Say
from dgpo_cli.core.records import to_json, write_atomic
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.setting_names import as_first_written
from dgpo_cli.errors import InputError
from dgpo_cli.evaluation.stats import nested_interval
from dgpo_cli.offline.ladder import Difference, LadderRow
from dgpo_cli.offline.project import read_row
from dgpo_cli.offline.reproduce_rows import BASE_ROWS, RowSpec, row_specs
from dgpo_cli.offline.stages import Row, Stages, Trial

_SHARED = ("world", "faults", "distill-data", "rollout", "teacher", "student")


@dataclass(frozen=True, slots=True)
class Record:
    """A finished row of one seed."""

    row: str
    seed: int
    digest: str
    result: Row
    train_seconds: float
    validation: tuple[tuple[float, float], ...]  # (training seconds, EM)


class Ladder(Stages):
    """All rows of one seed. `records` is the folder of finished rows, `folder` that of models and runs."""

    def __init__(
        self,
        folder: Path,
        records: Path,
        *,
        seed: int,
        device: str,
        say: Say,
        bar: Bar,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(folder, seed=seed, device=device, say=say, bar=bar, settings=settings)
        self.records = records
        self.specs = row_specs(settings)
        self._started: tuple[Path, Path, Path] | None = None

    def run(self, names: Sequence[str]) -> dict[str, Record]:
        """Records of the student, the teacher and the rows named."""
        return {name: self.record(name) for name in (*BASE_ROWS, *names)}

    def record(self, name: str) -> Record:
        """The record of a row: read where its digest is right, else made."""
        digest = self.digest(name)
        path = self.records / f"seed-{self.seed}" / f"{name}.json"
        found = read_record(path)
        if found is not None and found.digest == digest:
            return found
        model = self.model(name)
        result = self.evaluate(name, model)
        trained = {} if name in BASE_ROWS else self.result(name)
        record = Record(name, self.seed, digest, result, round(trained.get("seconds", 0.0), 1), self._validation(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(asdict(record), indent=1, ensure_ascii=True) + "\n")
        return record

    def model(self, name: str) -> Path:
        """The trained model of a row, made if it is not there."""
        if self._started is None:
            self._started = self.start()
        student, teacher, trajectories = self._started
        if name in BASE_ROWS:
            return {"student": student, "teacher": teacher}[name]
        spec = self.specs[name]
        begin, settings = self.model(spec.start), dict(spec.settings)
        if spec.as_long_as is not None:
            # The time that the other row had, by its record: on another machine it may be trained no more.
            settings |= {"seconds": self.record(spec.as_long_as).train_seconds, "steps": 1_000_000}
        if spec.command == "rl":
            return self.rl(name, begin, teacher, settings)
        return self.kd(name, begin, teacher, trajectories, settings)

    def digest(self, name: str) -> str:
        """Digest of everything that decides a row, apart from the machine."""
        shared = {key: self.recipe[key] for key in _SHARED}
        if name in BASE_ROWS:
            return config_digest(name, shared | {"seed": self.seed})
        spec = self.specs[name]
        before = [self.digest(other) for other in (spec.start, spec.as_long_as) if other is not None]
        own = {
            "command": spec.command,
            "settings": as_first_written(spec.command, spec.settings),
            "before": before,
            "seed": self.seed,
        }
        return config_digest(name, shared | own)

    def search(self, names: Sequence[str]) -> list[Trial]:
        """Every row over the recipe's learning rates, then over what it tunes at the best of them."""
        found = []
        for name in names:
            spec = self.specs[name]
            if spec.as_long_as is not None:
                continue
            rates = [self.trial(name, {"lr": lr}) for lr in self.recipe["search"][spec.command]]
            best = max(rates, key=lambda trial: trial.validation_em).changes["lr"]
            tuned = [
                self.trial(name, {"lr": best, setting: value})
                for setting, values in spec.tune.items()
                for value in values
            ]
            found += rates + tuned
        return found

    def trial(self, name: str, changes: Mapping[str, float]) -> Trial:
        """A row trained under another name, with another learning rate or setting of its objective."""
        row = dict(self.recipe["rows"][name])
        for key, value in changes.items():
            if key == "lr":
                row[key] = value
            else:
                row["objective"] = row.get("objective", {}) | {key: value}
        trial = Ladder(
            self.folder,
            self.records,
            seed=self.seed,
            device=self.device,
            say=self._say,
            bar=self._bar,
            settings=self.recipe | {"rows": self.recipe["rows"] | {name: row}},
        )
        label = "-".join([name, *(f"{key}{value:g}" for key, value in changes.items())])
        return Trial(name, changes, trial.validation_em(name, label))

    def validation_em(self, name: str, trial: str) -> float:
        """Best EM on validation questions of a row trained under another name; recorded like a row."""
        digest = self.digest(name)
        path = self.records / "search" / f"seed-{self.seed}" / f"{trial}.json"
        found = _found(path, _TRIAL)
        if found is not None and found["digest"] == digest:
            return float(found["validation_em"])
        self.specs = self.specs | {trial: self.specs[name]}
        self.model(trial)
        best = float(self.result(trial)["best"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            path, to_json({"trial": trial, "digest": digest, "validation_em": best}, indent=1, ensure_ascii=True) + "\n"
        )
        return best

    def _validation(self, name: str) -> tuple[tuple[float, float], ...]:
        if name in BASE_ROWS:
            return ()
        return tuple((round(seconds, 2), em) for seconds, em in self.validation_curve(name))


def table(specs: Mapping[str, RowSpec], records: Sequence[Mapping[str, Record]], against: str) -> list[LadderRow]:
    """Rows that every seed has, in the recipe's order, each compared with the row `against` where that is there.

    `records` holds one mapping by seed. Intervals of 95 %; see `evaluate.stats.nested_interval`.
    """
    labels = {"student": "student (reads, cannot search)", "teacher": "teacher"} | {
        n: s.label for n, s in specs.items()
    }
    published = {"student": 0.006, "teacher": 0.353} | {n: s.published for n, s in specs.items()}
    rows = []
    for name, label in labels.items():
        if not all(name in seed for seed in records):
            continue
        made = [seed[name] for seed in records]
        right = [_answers(record) for record in made]
        difference = None
        if name != against and all(against in seed for seed in records):
            gaps = [a - _answers(seed[against]) for a, seed in zip(right, records, strict=True)]
            difference = Difference(
                float(np.mean([gap.mean() for gap in gaps])),
                nested_interval(gaps, over_groups=False),
                nested_interval(gaps, over_groups=True),
            )
        rows.append(
            LadderRow(
                name=name,
                label=label,
                published=published[name],
                em=[float(r.mean()) for r in right],
                interval=nested_interval(right, over_groups=True),
                em_by_hops={
                    hops: float(np.mean([r.result.em_by_hops.get(hops, 0.0) for r in made])) for hops in ("1", "2")
                },
                searches=float(np.mean([r.result.searches for r in made])),
                seconds=float(np.mean([r.train_seconds for r in made])),
                difference=difference,
            )
        )
    return rows


def _answers(record: Record) -> np.ndarray:
    """1 where a question was answered right, else 0."""
    return np.array([int(c) for c in record.result.right])


def read_record(path: Path) -> Record | None:
    """The record of a row; None where there is none of this form, so that the row is made again."""
    found = _found(path, _RECORD)
    if found is None:
        return None
    result = read_row(Row, found["result"], str(path))
    points = tuple((float(x), float(y)) for x, y in found["validation"])
    return Record(found["row"], found["seed"], found["digest"], result, found["train_seconds"], points)


_PAIR = schema.tuple_of(schema.number(), schema.number())
_RECORD = schema.of(
    Record, result=schema.of(Row, em_interval=_PAIR, right=schema.letters("01")), validation=schema.list_of(_PAIR)
)
_TRIAL = schema.record({"digest": schema.text(), "validation_em": schema.number()})


def _found(path: Path, kind: schema.FieldKind) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = schema.read_record(path, kind, hint="")
    except InputError:
        return None
    return found
