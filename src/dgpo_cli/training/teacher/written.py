"""Teachers that are no models: demonstrations from a file, and the one that knows the supporting passages.

What they write goes through the same search loop as a model's turns: observations are what the index returns, tokens
are those of the student's tokenizer, and what is kept is decided by the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgpo_cli.core.trajectory import attempt_key
from dgpo_cli.core.types import Question
from dgpo_cli.engine.scripted import Script, ScriptedEngine
from dgpo_cli.formats.base import Format
from dgpo_cli.models.codec import Codec
from dgpo_cli.qa_sets.demonstrations import read_demonstrations
from dgpo_cli.training.teacher import gold


def written_engine(codec: Codec, script: Script, max_tokens: int) -> ScriptedEngine:
    return ScriptedEngine(codec, script, capacity=max_tokens, by_key=True, logprob=None)


def file_script(path: str, form: Format) -> Script:
    """The script in a file of demonstrations, by question. Raises InputError."""
    steps = {attempt_key(entry.question, 0): entry.steps for entry in read_demonstrations(Path(path))}

    def script(key: str, read: Sequence[str]) -> str:
        # A turn beyond the last one: only where the loop allows fewer searches than the demonstration makes.
        step = steps[key][min(len(read), len(steps[key]) - 1)]
        return form.write(step.think, step.action, step.content)

    return script


def gold_script(questions: Sequence[Question], codec: Codec) -> Script:
    by_key = {attempt_key(question, 0): question for question in questions}

    def script(key: str, read: Sequence[str]) -> str:
        return gold.turn(by_key[key], [codec.passages_in(observation) for observation in read], codec.format)

    return script
