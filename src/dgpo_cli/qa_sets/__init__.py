"""Sources of questions: the seven QA sets of the paper, files of the same form, the offline world."""

from dgpo_cli.qa_sets.load import load_questions, name_and_place, read_questions, require_asked_of, training_set
from dgpo_cli.qa_sets.registry import QA_SETS, SEVEN, TRAIN_SETS, QASet, canonical_name

__all__ = [
    "QA_SETS",
    "SEVEN",
    "TRAIN_SETS",
    "QASet",
    "canonical_name",
    "load_questions",
    "name_and_place",
    "read_questions",
    "require_asked_of",
    "training_set",
]
