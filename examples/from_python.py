"""The library from Python: load a model, open an index, ask, train a step, evaluate.

    python examples/from_python.py MODEL TEACHER INDEX QUESTIONS OUT

After `make quickstart` there is one of each:

    python examples/from_python.py quickstart/runs/kd quickstart/runs/teacher quickstart/index \\
        quickstart/world/train.jsonl /tmp/one-step
"""

from __future__ import annotations

import sys
from pathlib import Path

import dgpo_cli


def main(model: str, teacher: str, index: str, questions: str, out: str) -> None:
    opened = dgpo_cli.open_index(index)
    agent = dgpo_cli.Agent.open(dgpo_cli.load_model(model, device="cpu"), opened.retriever)
    asked = dgpo_cli.read_questions(Path(questions))[:8]

    # One episode: every search, what it returned, and the answer.
    episode = agent.ask(asked[0].text)
    print(f"question: {asked[0].text}")
    for call in episode.searches:
        print(f"searched: {call.query!r}, found {[hit.passage.title for hit in call.hits]}")
    print(f"answer:   {episode.answer!r}, ended as {episode.stop}")

    # Several at once, graded by exact match.
    before = dgpo_cli.evaluate(agent, asked)
    print(f"before:   EM {before.overall.em:.1%} of {before.overall.n} questions")

    # One step of DGPO: the student writes episodes, and follows the teacher where its answer was wrong.
    result = dgpo_cli.train(
        "dgpo",
        student=model,
        teacher=teacher,
        index=index,
        questions=questions,
        steps=1,
        batch_size=8,
        eval_limit=8,
        rollout=agent.codec.protocol.limits,
        device="cpu",
        out=out,
    )
    print(f"trained:  {result['steps']} step in {result['seconds']:.1f} s")

    # The best weights lie in the run folder; a run's name or folder is a model.
    trained = dgpo_cli.Agent.open(dgpo_cli.load_model(out, device="cpu"), opened.retriever)
    after = dgpo_cli.evaluate(trained, asked)
    print(f"after:    EM {after.overall.em:.1%} of {after.overall.n} questions")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
