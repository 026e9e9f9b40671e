"""The QA sets: FlashRAG's names, the split that is evaluated, and its size (RUC-NLPIR/FlashRAG_datasets)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dgpo_cli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class QASet:
    name: str  # also the hub's folder
    split: str  # evaluated
    size: int  # questions of that split; 0 where the set is made by a user
    has_train: bool = False


QA_SETS: dict[str, QASet] = {
    s.name: s
    for s in (
        QASet("nq", "test", 3_610, has_train=True),
        QASet("triviaqa", "test", 11_313, has_train=True),
        QASet("popqa", "test", 14_267),
        QASet("hotpotqa", "dev", 7_405, has_train=True),
        QASet("2wikimultihopqa", "dev", 12_576, has_train=True),
        QASet("musique", "dev", 2_417, has_train=True),
        QASet("bamboogle", "test", 125),
        QASet("tinyworld", "test", 0, has_train=True),
    )
}
SEVEN = tuple(name for name in QA_SETS if name != "tinyworld")
ALIASES = {"2wiki": "2wikimultihopqa", "twowiki": "2wikimultihopqa", "hotpot": "hotpotqa"}


def canonical_name(name: str) -> str:
    """Raises ConfigError that names the nearest sets."""
    known = ALIASES.get(name, name)
    if known not in QA_SETS:
        near = difflib.get_close_matches(name, [*QA_SETS, *ALIASES], n=2)
        raise ConfigError(
            f"unknown QA set {name!r}", hint=f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(QA_SETS)}"
        )
    return known
