"""A real language model learns to search: raw, demonstrations, cold start, and the longer path with rewards.

The short path ends with a model that looks things up; the longer one trains a teacher on all demonstrations and a
student on few, and from that student several rows of equal numbers of episodes. The settings are those of
`recipes/quickstart-real.toml`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.figures import percent
from dgpo_cli.core.progress import Bar, Say
from dgpo_cli.core.records import read_records, write_atomic, write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.types import question_to_json
from dgpo_cli.evaluation.stats import paired_difference
from dgpo_cli.evaluation.summary import Report
from dgpo_cli.models.contents import file_digest
from dgpo_cli.models.sources import resolve
from dgpo_cli.offline.project import PathResult, read_row
from dgpo_cli.offline.stages import Stages
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.qa_sets.real import corpus_rows, files, hub_files, split
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.training.teacher.distill_data import run_distill_data
from dgpo_cli.training.teacher.settings import GOLD, DistillDataSettings

RL_ROWS = ("dgpo", "ppo", "dgpo_k1")
ROWS = ("raw", "cold-start", "teacher", "student", "kd_longer", "ppo", "dgpo_k1", "dgpo")


@dataclass(frozen=True, slots=True)
class RealRow:
    """One model on held-out questions, greedy; shares from 0 to 1, intervals of 95 %."""

    questions: int
    em: float
    em_interval: tuple[float, float]
    f1: float
    searches: float
    answered: float
    retrieved: float | None  # share of questions whose answer stood in a passage that was found
    format_valid: float | None
    em_by_set: dict[str, float]
    right: dict[str, float]  # by question: 1 where the answer was right

    @classmethod
    def of(cls, report: Report) -> RealRow:
        """The row of an evaluation."""
        overall = report.overall
        by_set: dict[str, list[bool]] = {}
        for outcome in report.outcomes:
            by_set.setdefault(outcome.question.partition("/")[0], []).append(outcome.em)
        return cls(
            questions=overall.n,
            em=overall.em,
            em_interval=(overall.em_interval.low, overall.em_interval.high),
            f1=overall.f1,
            searches=overall.searches,
            answered=overall.stops.get("answered", 0) / max(1, overall.n),
            retrieved=overall.answer_retrieved,
            format_valid=overall.format_valid,
            em_by_set={name: sum(right) / len(right) for name, right in sorted(by_set.items())},
            right={outcome.question: float(outcome.em) for outcome in report.outcomes},
        )


class RealPath(Stages):
    """`bench_dir` holds questions and passages, else the hub does; what is made from them lies in `folder`."""

    bench, recipe_name = "real", "quickstart-real"

    def __init__(
        self,
        folder: Path,
        bench_dir: Path | None,
        *,
        seed: int,
        device: str,
        say: Say,
        bar: Bar,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, seed=seed, device=device, say=say, bar=bar, settings=settings)
        self.bench_dir = bench_dir

    def run(self) -> PathResult[RealRow]:
        """The short path."""
        started = time.perf_counter()
        self.prepare()
        raw = self.base()
        count = self.recipe["world"]["quick_questions"]
        rows = {"raw": self.measure("raw", raw, count)}
        cold = self.cold_start(raw)
        rows["cold-start"] = self.measure("cold-start", cold, count)
        return self._result(rows, {"raw": raw, "cold-start": cold}, started)

    def ladder(self) -> PathResult[RealRow]:
        """The longer path: every row of ROWS on all test questions, the raw model on some."""
        started = time.perf_counter()
        self.prepare()
        models = {"raw": self.base()}
        rows: dict[str, RealRow] = {}

        def row(name: str, model: Path, count: int | None = None) -> None:
            models[name] = model
            rows[name] = self.measure(name, model, count)
            self.record(rows)

        models["cold-start"] = self.cold_start(models["raw"])
        row("cold-start", models["cold-start"])
        row("raw", models["raw"], self.recipe["world"]["raw_questions"])
        everything = self.demonstrations("all-demonstrations", models["raw"], None)
        row("teacher", self.kd("teacher", models["cold-start"], models["raw"], everything, self.recipe["teacher"]))
        few = dict(self.recipe["student"])
        data = self._first(everything, few.pop("demonstrations"))
        row("student", self.kd("student", models["raw"], models["raw"], data, few))
        start, teacher = models["student"], models["teacher"]
        for name in RL_ROWS:
            row(name, self.rl(name, start, teacher, self._rl_options(name, start, teacher)))
        row("kd_longer", self.kd("kd_longer", start, teacher, everything, self.recipe["kd_longer"]))
        return self._result({name: rows[name] for name in ROWS}, models, started)

    def _result(self, rows: Mapping[str, RealRow], models: Mapping[str, Path], started: float) -> PathResult[RealRow]:
        self.record(rows)
        return self.finished(rows, models, started)

    def record(self, rows: Mapping[str, RealRow]) -> None:
        """Write results.json: figures so far, and each row compared with cold start and rl's student."""
        paired = {
            f"{name} - {base}": asdict(paired_difference(*_shared(rows[base].right, row.right)))
            for base in ("raw", "student")
            for name, row in rows.items()
            if base in rows and name not in (base, "raw")
        }
        figures = {name: {k: v for k, v in asdict(row).items() if k != "right"} for name, row in rows.items()}
        text = json.dumps({"rows": figures, "paired": paired}, indent=1, ensure_ascii=False)
        write_atomic(self.folder / "results.json", text + "\n")

    # --- stages ---

    def prepare(self) -> None:
        """Corpus, index, and the questions of each side."""
        world = self.recipe["world"]
        sets = hub_files() if self.bench_dir is None else files(self.bench_dir)
        parts = split(sets, test=world["test_questions"], validation=world["validation_questions"], seed=self.seed)
        stamp = self.world_folder / "world.json"
        sides = {"train": parts.training, "validation": parts.validation, "test": parts.test}
        rows = {side: [question_to_json(question) for question in questions] for side, questions in sides.items()}
        corpora = {name: file_digest(found.corpus or found.questions) for name, found in sets.items()}
        digest = config_digest("real", {"questions": rows, "corpora": corpora})
        if (made := self.made_world()) is not None and made.digest == digest:
            self._reuse("questions, passages and index")
            return
        for side, questions in rows.items():
            write_jsonl_atomic(self.world_folder / f"{side}.jsonl", questions)
        write_jsonl_atomic(self.world_folder / "corpus.jsonl", corpus_rows(sets))
        with self._bar("index", "passage") as progress:
            manifest, _ = build_index(
                self.world_folder / "corpus.jsonl", self.index_folder, overwrite=True, progress=progress
            )
        counts = ", ".join(f"{len(questions):,} {side}" for side, questions in sides.items())
        self._say(f"index: {manifest.passages:,} passages of {', '.join(sets)}; questions: {counts}")
        write_atomic(stamp, json.dumps({"digest": digest, "sets": list(sets)}) + "\n")

    def base(self) -> Path:
        """The folder of the model that is trained; that of a hub model is downloaded."""
        source = resolve(self.recipe["world"]["student"])
        if source.local:
            return Path(source.location)
        from huggingface_hub import snapshot_download

        with self._bar(f"{source.location} from the hub", "file"):
            return Path(snapshot_download(source.location, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))

    def _validation_of_kd(self) -> dict[str, str | int]:
        """Likelihood of held-out demonstrations: searching for EM would take as long as the training."""
        return {}

    def cold_start(self, raw: Path) -> Path:
        data = self.demonstrations("demonstrations", raw, self.recipe["demonstrations"]["questions"])
        return self.kd("cold-start", raw, raw, data, self.recipe["cold-start"])

    def demonstrations(self, stage: str, model: Path, limit: int | None) -> Path:
        """Trajectories that the gold teacher wrote in the tokens of `model`."""
        settings = DistillDataSettings(
            teacher=GOLD,
            tokenizer=str(model),
            index=str(self.index_folder),
            questions=str(self.world_folder / "train.jsonl"),
            keep=self.recipe["demonstrations"]["keep"],
            limit=limit,
            seed=self.seed,
            device=self.device,
            rollout=self.rollout,
        )

        def work(run: RunDir) -> None:
            questions = read_questions(Path(settings.questions))[:limit]
            with self._bar(stage, "episode") as progress:
                run_distill_data(settings, run, questions=questions, progress=progress)

        summary = self._stage(stage, "distill-data", asdict(settings), work)
        self._say(f"{stage}: {summary['kept']} of {summary['episodes']} right, with the answer in what was read")
        return self.path(stage) / "trajectories.jsonl"

    def _first(self, data: Path, count: int) -> Path:
        """Write the first trajectories of a file to a file next to it."""
        target = self.folder / f"first-{count}.jsonl"
        header, rows = read_records(data, "trajectories")
        write_jsonl_atomic(target, [header, *(row for _, row in list(rows)[:count])])
        return target

    def _rl_options(self, row: str, start: Path, teacher: Path) -> dict[str, Any]:
        """Options of a row, at the learning rate of the recipe's grid that is best on validation questions."""
        method = "ppo" if row == "ppo" else "dgpo"
        options: dict[str, Any] = self.recipe["rl"] | self.recipe[row] | {"method": method}
        grid = self.recipe["search"]
        if len(grid["lr"]) == 1:
            return options | {"lr": grid["lr"][0]}
        scores = {}
        for lr in grid["lr"]:
            stage = f"search/{row}-lr{lr:g}"
            short = dict.fromkeys(("steps", "eval_every", "save_every"), grid["steps"])
            self.rl(stage, start, teacher, options | short | {"lr": lr})
            scores[lr] = self.result(stage)["best"]
        return options | {"lr": max(scores, key=lambda lr: scores[lr])}

    def measure(self, name: str, model: Path, count: int | None = None) -> RealRow:
        """Greedy answers to the first `count` test questions."""
        found = self.measured(name, model, count, lambda report: asdict(RealRow.of(report)), stop_repeats=True)
        row = read_row(RealRow, found, str(self.path(f"eval-{name}")))
        self._say(
            f"{name}: EM {percent(row.em)}, F1 {percent(row.f1)}, {row.searches:.2f} searches, "
            f"{percent(row.answered)} answered, {row.questions} questions"
        )
        return row


def _shared(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Two rows on the questions that both were asked."""
    keys = [key for key in first if key in second]
    return {key: first[key] for key in keys}, {key: second[key] for key in keys}
