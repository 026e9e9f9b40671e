"""`dgpo serve --model` beside `transformers serve`: the same model, the same prompts, plain chat completions.

    python benchmarks/serve_beside.py --model smollm2-135m --index INDEX --questions FILE --clients 1 8

Both servers run all the time and are asked in turn, round by round, so that what else the machine does falls on both
alike. `transformers serve` gets the agent's prompt for a question, and `dgpo serve` may not search, so that both read
the same tokens and, greedily, write the same text; how often they did is told. Time on a busy machine says little: the
servers' CPU seconds per answer are what to compare. Prints rows for docs/benchmarks.md and a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import about
from serving import ChatClient, Running, asked_by, cpu_seconds, dgpo_serve, transformers_serve

from dgpo_cli.models.sources import load_protocol, resolve
from dgpo_cli.qa_sets import read_questions


def asked(server: Running, fields: dict[str, Any], questions: list[str], clients: int) -> dict[str, Any]:
    """Every client asks its share of `questions`."""
    shares = [iter(questions[number::clients]) for number in range(clients)]
    asking = [ChatClient(server.url, fields, lambda share=share: next(share, None)) for share in shares]  # type: ignore[misc]
    before = cpu_seconds(server.process)
    found = asked_by(asking)
    found["cpu_seconds"] = cpu_seconds(server.process) - before
    found["read"] = sum(client.read for client in asking)
    found["said"] = {question: text for client in asking for question, text in client.said.items()}
    return found


def row(name: str, clients: int, rounds: list[dict[str, Any]]) -> str:
    def median(key: str) -> float:
        return statistics.median(found.get(key, float("nan")) for found in rounds)

    answers, tokens = sum(found["answers"] for found in rounds), sum(found["tokens"] for found in rounds)
    cpu = sum(found["cpu_seconds"] for found in rounds)
    cells = (
        name,
        clients,
        answers,
        f"{tokens / max(1, answers):.1f}",
        f"{cpu / max(1, answers):.2f}",
        f"{tokens / cpu:.1f}",
        f"{median('first_p50_ms'):,.0f}",
        f"{median('whole_p50_ms'):,.0f}",
        f"{median('tokens_per_second'):.1f}",
        sum(found["errors"] for found in rounds),
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="alias, run or folder")
    parser.add_argument("--index", required=True, help="index folder, in which nothing is searched")
    parser.add_argument("--questions", required=True, help="file of questions")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="clients at once (1 8)")
    parser.add_argument("--each", type=int, default=1, help="questions of each client in a round (1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=int, default=48, help="tokens of an answer (48)")
    parser.add_argument("--dtype", default="float32", help="of both (float32)")
    parser.add_argument("--continuous", action="store_true", help="`transformers serve --continuous-batching` as well")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    source = resolve(arguments.model)
    protocol, _ = load_protocol(source)
    texts = [question.text for question in read_questions(Path(arguments.questions))]
    prompts = {text: protocol.render_prompt(text)[0] for text in texts}
    given = ("--model", arguments.model, "--index", arguments.index, "--device", arguments.device)
    own = ("-o", f"precision={arguments.dtype}", "-o", "rollout.max_turns=0")
    folder = str(source.location)
    theirs = ("--device", arguments.device, "--dtype", arguments.dtype)
    more = ("--continuous-batching", "--attn-implementation", "paged|sdpa") if arguments.continuous else ()
    results: dict[str, dict[int, list[dict[str, Any]]]] = {}
    with dgpo_serve(*given, *own) as ours, transformers_serve(folder, *theirs, *more) as other:
        name = "transformers serve" + (", continuous batching" if arguments.continuous else "")
        sides = {
            "dgpo serve": (ours, {"max_completion_tokens": arguments.turn}, False),
            name: (other, {"model": folder, "max_tokens": arguments.turn, "temperature": 0.0}, True),
        }
        for server, fields, whole in sides.values():  # some load the model with the first question
            asked(server, fields, [prompts[texts[-1]] if whole else texts[-1]], 1)
        same = compared = 0
        for number in range(arguments.rounds):
            for clients in arguments.clients:
                start = number * clients * arguments.each
                chosen = [texts[(start + place) % (len(texts) - 1)] for place in range(clients * arguments.each)]
                said = {}
                # The one that was second is first in the next round.
                for side in sorted(sides, reverse=number % 2 == 1):
                    server, fields, whole = sides[side]
                    found = asked(server, fields, [prompts[text] if whole else text for text in chosen], clients)
                    said[side] = found.pop("said")
                    results.setdefault(side, {}).setdefault(clients, []).append(found)
                    print(side, json.dumps(found), file=sys.stderr, flush=True)
                pairs = [(said["dgpo serve"].get(text, ""), said[name].get(prompts[text], "")) for text in chosen]
                same += sum(b.strip() != "" and " ".join(a.split()).startswith(" ".join(b.split())) for a, b in pairs)
                compared += len(pairs)
    print(
        "| server | clients | answers | tokens each | CPU s an answer | tokens per CPU s | first text p50 ms "
        "| answer p50 ms | tokens/s | errors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(row(side, clients, rounds) for side, by in results.items() for clients, rounds in by.items()),
        f"the same text: {same} of {compared}",
        sep="\n",
        file=sys.stderr,
    )
    import torch

    machine = about(torch.device(arguments.device))
    print(
        json.dumps(
            {"results": results, "same": same, "compared": compared, "machine": machine, "cores": os.cpu_count()}
        )
    )
    sys.exit(1 if any(f["errors"] for by in results.values() for rounds in by.values() for f in rounds) else 0)


if __name__ == "__main__":
    main()
