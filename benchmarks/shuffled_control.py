"""The control of the offline world: can its questions be answered without reading the right passage?

    python benchmarks/shuffled_control.py quickstart --seed 0

asks the models of a finished quickstart the same test questions over a corpus whose texts are shuffled between titles.
What they still get right they know by heart. Prints one JSON object: EM by model.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from dgpo_cli.agent.agent import Agent
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model
from dgpo_cli.offline.quickstart import ROWS, Quickstart
from dgpo_cli.offline.world.world import build_world, shuffled
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished quickstart")
    parser.add_argument("--seed", type=int, default=0, help="the one that it had")
    parser.add_argument("--models", default="teacher,kd,ppo,dgpo", help=f"of {', '.join(ROWS)}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = Quickstart(given.folder, seed=given.seed, device="cpu", say=print, bar=lambda *_: None)
    questions = read_questions(work.world_folder / "test.jsonl")[: work.recipe["world"]["test_questions"]]
    settings = replace(work.rollout, temperature=0.0, wave=200)
    with tempfile.TemporaryDirectory() as scratch:
        corpus, index = Path(scratch) / "corpus.jsonl", Path(scratch) / "index"
        passages = shuffled(build_world(given.seed)).passages
        write_jsonl_atomic(corpus, [{"id": p.id, "contents": p.contents} for p in passages])
        build_index(corpus, index)
        retriever = open_index(index).retriever
        found = {}
        for name in given.models.split(","):
            loaded = load_model(str(work.path(name)), device=torch.device("cpu"))
            agent = Agent.of(loaded.model, Codec(loaded.tokenizer, loaded.protocol), retriever, settings)
            report = evaluate(questions, run_batch=agent.run)
            found[name] = report.overall.em
    print(json.dumps({"questions": len(questions), "em": found}))


if __name__ == "__main__":
    main()
