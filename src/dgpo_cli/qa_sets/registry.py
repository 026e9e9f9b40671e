"""The QA sets: FlashRAG's names, their splits, which of them is evaluated, and its size."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dgpo_cli.errors import ConfigError

HUB = "RUC-NLPIR/FlashRAG_datasets"


@dataclass(frozen=True, slots=True)
class QASet:
    """A QA set: its name, and which of its splits is evaluated."""

    name: str  # also the hub's folder
    split: str  # evaluated
    size: int  # questions of that split; 0 where a user makes the set
    splits: tuple[str, ...]


QA_SETS: dict[str, QASet] = {
    s.name: s
    for s in (
        QASet("nq", "test", 3_610, ("train", "dev", "test")),
        QASet("triviaqa", "test", 11_313, ("train", "dev", "test")),
        QASet("popqa", "test", 14_267, ("test",)),
        QASet("hotpotqa", "dev", 7_405, ("train", "dev")),
        QASet("2wikimultihopqa", "dev", 12_576, ("train", "dev")),
        QASet("musique", "dev", 2_417, ("train", "dev")),
        QASet("bamboogle", "test", 125, ("test",)),
        QASet("tinyworld", "test", 0, ("train", "validation", "test")),
        QASet("made", "test", 0, ("train", "validation", "test")),
    )
}
SEVEN = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")  # the paper's
FILE_SETS = {"tinyworld": "dgpo quickstart", "made": "dgpo make-questions"}  # no hub has them; the command makes them
TRAIN_SETS = ("nq", "hotpotqa")  # what Search-R1 and the paper train on
ALIASES = {"2wiki": "2wikimultihopqa", "twowiki": "2wikimultihopqa", "hotpot": "hotpotqa"}


def canonical_name(name: str) -> str:
    """Raises ConfigError that names the nearest sets."""
    known = ALIASES.get(name, name)
    if known not in QA_SETS:
        near = difflib.get_close_matches(name, [*QA_SETS, *ALIASES], n=2)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"unknown QA set {name!r}", hint=f"{meant}known: {', '.join(QA_SETS)}; or give a file of questions"
        )
    return known
