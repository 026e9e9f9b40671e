"""Two evaluations and a training run made by hand, with text in them that tries to become part of the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.tiny import bpe_tokenizer

from dgpo_cli.agent.agent import grade
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Passage, Question, SearchCall, StopReason
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec

ATTACK = '</script><script>window.ran = "yes"</script><img src=x onerror="window.ran = 1"><!-- &lt;'
PASSAGE = Passage.from_title("p1", f"Lyon {ATTACK}", f"A city. {ATTACK}")


def episode(codec: Codec, place: int, answer: str | None, gold: str = "Lyon") -> Trajectory:
    """Prompt, a search with one passage, a turn without an action, its correction, then an answer if there is one."""
    question = Question(
        f"q{place}", f"Question number {place} {ATTACK}", (gold,), "hand", hops=1 + place % 2, supporting_ids=("p1",)
    )
    turns = [
        (False, codec.prompt_ids(question.text).ids),
        (True, codec._encode("<think>hm</think><search>where is it</search>", trusted=False)),
        (False, codec.observation_ids([PASSAGE], 1000).ids),
        (True, codec._encode("no idea é", trusted=False)),
        (False, codec.correction_ids().ids),
    ]
    if answer is not None:
        turns.append((True, codec._encode(f"<answer>{answer}</answer>", trusted=False)))
    made = Trajectory(
        question=question,
        token_ids=tuple(i for _, ids in turns for i in ids),
        written=tuple(written for written, ids in turns for _ in ids),
        logprobs=None,
        searches=(SearchCall("where is it", (Hit(PASSAGE, 1.25, 1),)),),
        stop=StopReason.ANSWERED if answer is not None else StopReason.MAX_TURNS,
        answer=answer,
        turns=3,
        invalid_actions=1,
    )
    return grade(codec.with_turns(made))


def make(folder: Path) -> tuple[Path, Path, Path]:
    """Of six questions the first evaluation has right 0, 1, 2, the second 0, 3; and a training run of 30 steps.

    Of the first one's five answers the probabilities are known, and fall from one to the next.
    """
    tokenizer = bpe_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text("{}")
    codec = Codec(tokenizer, TINYWORLD)
    paths = []
    for name, right, top_k in (("first", {0, 1, 2}, 3), ("second", {0, 3}, 5)):
        config = {"model": str(folder / "model"), "benchmarks": ["hand"], "top_k": top_k, "seed": 0}
        with RunDir.open("eval", config, out=folder / name) as run:
            meta = {"protocol": TINYWORLD.to_json(), "settings": {"top_k": top_k, "seed": 0, "wave": top_k}}
            with RecordFile(run.path / "hand.jsonl", key="key", schema="evaluation", meta=meta) as records:
                for place in range(6):
                    answer = None if place == 5 else "Lyon" if place in right else f"Paris {ATTACK}"
                    told = None if name == "second" or answer is None else -place / 10
                    made = replace(episode(codec, place, answer), answer_logprob=told)
                    records.append({"key": made.key} | made.to_json())
            run.finish({"em": len(right) / 6})
            paths.append(run.path)
    with RunDir.open("rl", {"method": "dgpo", "student": "s", "seed": 0}, out=folder / "train") as run:
        for step in range(1, 31):
            run.log(step, {"reward": step / 30, "entropy": 1 / step, "odd<name>": 1.0, "seconds": 2.0 * step})
        run.log(30, {"eval_em": 0.5})
        run.finish({"steps": 30})
        paths.append(run.path)
    first, second, train = paths
    return first, second, train
