"""Load test of `dgpo serve --model` on this machine: many clients that ask without a pause, each by a stream.

    python benchmarks/serve_agent.py --model quickstart/runs/dgpo --index quickstart/index \
        --questions quickstart/world/test.jsonl --clients 32 --seconds 180

Starts the server itself, on a free loopback port. Every stream is read to its end and checked: an answer or a reason
why there is none, and counts of tokens that agree. Prints a row for docs/benchmarks.md on stderr and one JSON object on
stdout; status 1 if a question failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from serving import ChatClient, asked_by, dgpo_serve, memory_mb

from dgpo_cli.qa_sets import read_questions


class Clock:
    """Questions of one client until the time is over."""

    def __init__(self, number: int, questions: list[str], seconds: float) -> None:
        self._draw, self._questions = random.Random(f"client {number}"), questions
        self._end = time.monotonic() + seconds

    def __call__(self) -> str | None:
        return self._draw.choice(self._questions) if time.monotonic() < self._end else None


def row(name: str, result: dict[str, Any]) -> str:
    times = (f"{result.get(key, float('nan')):,.0f}" for key in ("first_p50_ms", "first_p95_ms", "whole_p50_ms"))
    cells = (name, result["clients"], f"{result['seconds']:g} s", result["answers"], *times)
    return f"| {' | '.join(map(str, (*cells, result['tokens_per_second'], result['errors'])))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="run or folder")
    parser.add_argument("--index", required=True, help="index folder")
    parser.add_argument("--questions", required=True, help="file of questions")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long to ask (180)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (32)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("options", nargs="*", help="for `dgpo serve`, after --: -- -o max_episodes=16")
    arguments = parser.parse_args()
    questions = [question.text for question in read_questions(Path(arguments.questions))]
    given = ("--model", arguments.model, "--index", arguments.index, "--device", arguments.device)
    with dgpo_serve(*given, *arguments.options) as server:
        memory = memory_mb(server.process)
        asking = (Clock(number, questions, arguments.seconds) for number in range(arguments.clients))
        result = asked_by([ChatClient(server.url, {}, ask) for ask in asking])
        result |= {"memory_mb": {"start": memory, "end": memory_mb(server.process)}, "cores": os.cpu_count()}
    print(
        "| server | clients | time | answers | first text p50 ms | p95 ms | answer p50 ms | tokens/s | errors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        row("dgpo serve", result),
        sep="\n",
        file=sys.stderr,
    )
    print(json.dumps(result))
    sys.exit(1 if result["errors"] or not result["answers"] else 0)


if __name__ == "__main__":
    main()
