"""`dgpo eval` of a sample, extrapolated to the paper's 51,713 questions.

    python benchmarks/eval_throughput.py                                    on a GPU: a 3B and a 0.5B
    python benchmarks/eval_throughput.py --models tiny --work tiny --at-once 4 --questions 16 --device cpu

The program's own evaluation asks, searches, grades and writes records, at temperature 0 over `--at-once` questions
together; weights are random with the true configuration, and turns end where forced.py says (prompt 300, three searches
of 500 tokens, turns of 50 to 150 tokens). One process per row; some questions warm up. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

QUESTIONS = 51_713  # of the seven sets
PUBLISHED_S = 6_000  # of a 3B on 8 cards
TARGET_S = 3_600  # ours, on one H200


def measure(asked: argparse.Namespace, name: str, at_once: int) -> dict[str, Any]:
    import forced
    import torch
    from machine import Peak, about, synchronize

    from dgpo_cli.agent.agent import Agent
    from dgpo_cli.core.records import RecordFile
    from dgpo_cli.evaluation.run import evaluate
    from dgpo_cli.evaluation.suite import EvalSettings
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.devices import inference_dtype

    device, work = torch.device(asked.device), forced.WORKS[asked.work]
    words = forced.tokenizer_for(name)
    model = forced.model_of(name, device, inference_dtype(device), len(words))
    codec = Codec(words, work.protocol)
    settings = EvalSettings(name, ("bench",), {"bench": "bench"}, wave=at_once, max_searches=work.searches)
    with tempfile.TemporaryDirectory() as place, forced.forced(work) as engine:
        search = forced.retriever(Path(place), asked.index, asked.passages)
        agent = Agent.of(model, codec, search, settings.rollout()).with_settings(**work.rollout())
        questions = forced.questions(work, codec, asked.questions + min(16, at_once))

        def answered(part: list[Any], file: str) -> Any:
            with RecordFile(Path(place) / file, key="key", schema="evaluation") as records:
                return evaluate(part, run_batch=agent.run, records=records)

        answered(questions[asked.questions :], "warm-up.jsonl")
        synchronize(device)
        peak, before, searched, started = Peak(device), engine.written, search.seconds, time.perf_counter()
        report = answered(questions[: asked.questions], "records.jsonl")
        synchronize(device)
        seconds = time.perf_counter() - started
    assert report.overall.n == asked.questions, report.overall
    return about(device) | {
        "model": name,
        "at_once": at_once,
        "questions": asked.questions,
        "seconds": round(seconds, 3),
        "search_seconds": round(search.seconds - searched, 3),
        "search": search.name,
        "tokens_per_s": round((engine.written - before) / seconds, 1),
        "memory": peak.bytes(),
        "em": report.overall.em,
        "all_questions_s": round(extrapolated(seconds, asked.questions)),
    }


def extrapolated(seconds: float, questions: int) -> float:
    """Seconds for all questions from those of some."""
    return seconds * QUESTIONS / questions


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | at once | questions/s | generated tokens/s | memory | 51,713 questions |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['model']} | {row['at_once']} | not measured: {row['error']} | | | |")
            continue
        memory = max(row["memory"].values()) / 1e9
        lines.append(
            f"| {row['model']} | {row['at_once']} | {row['questions'] / row['seconds']:.1f} "
            f"| {row['tokens_per_s']:,.0f} | {memory:.2f} GB | {row['all_questions_s']:,} s |"
        )
    return "\n".join([*lines, f"Published: {PUBLISHED_S:,} s for a 3B on 8 cards. Target: {TARGET_S:,} s on one H200."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["qwen-3b", "qwen-0.5b"])
    parser.add_argument("--work", default="reference", help="reference or tiny")
    parser.add_argument("--at-once", type=int, nargs="+", default=[256], help="--batch-size of `dgpo eval`")
    parser.add_argument("--questions", type=int, default=1_024)
    parser.add_argument("--index", help="index folder or server; BM25 over generated passages by default")
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked, asked.one[0], int(asked.one[1]))))
        return
    rows = []
    for name in asked.models:
        for at_once in asked.at_once:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(at_once)]
            ended = subprocess.run(command, capture_output=True, text=True)
            sys.stderr.write(ended.stderr)
            lost = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
            row = {"model": name, "at_once": at_once, "error": lost}
            rows.append(row if ended.returncode else json.loads(ended.stdout.splitlines()[-1]))
    told = {"work": asked.work, "target_s": TARGET_S, "published_s": PUBLISHED_S, "rows": rows}
    print(table(rows), file=sys.stderr)
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    sys.exit(1 if all("error" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
