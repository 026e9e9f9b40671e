"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgpo_cli.objectives.base import TokenBatch
from dgpo_cli.objectives.registry import create

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_on_one_page_is_the_toolkits() -> None:
    """The same tokens through `objectives/dgpo.py`: surrogate, entropy, and the KL where the answer is wrong."""
    page = script("dgpo_from_scratch")
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 11, generator=generator).log_softmax(-1) for _ in range(2))
    taken = torch.randint(0, 11, (40,), generator=generator)
    written = student.gather(-1, taken[:, None])[:, 0]
    old, advantages = written + 0.3 * torch.randn(40, generator=generator), torch.randn(40, generator=generator)
    wrong = (torch.rand(40, generator=generator) < 0.5).float()
    options = {"kl_form": "full-loss", "kl_coef": page.KL_COEF, "clip": page.CLIP, "entropy_coef": page.ENTROPY_COEF}
    tokens = TokenBatch(
        token_ids=taken, logprobs=written, log_probs=student, weights=torch.ones(40),
        sequence_index=torch.zeros(40, dtype=torch.long), behavior_logprobs=old,
        teacher_log_probs=teacher, advantages=advantages, kl_weight=page.KL_COEF * wrong,
    )  # fmt: skip
    expected = create("dgpo", options).loss(tokens).terms["policy"]
    assert torch.allclose(page.dgpo_loss(student, old, taken, advantages, teacher, wrong), expected, atol=1e-5)
    assert not torch.allclose(page.dgpo_loss(student, old, taken, advantages, teacher, 1 - wrong), expected, atol=1e-2)


@pytest.mark.slow
def test_dgpo_on_one_page_learns_to_search() -> None:
    em = script("dgpo_from_scratch").main([])
    assert 0.1 < em["cold start"] < em["teacher"] + 0.1
    assert em["dgpo"] > em["cold start"] + 0.1


def test_the_library_from_python(offline, searcher, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("from_python").main(
        str(searcher), str(offline.teacher), str(offline.index), str(offline.questions("train")), str(folder / "out")
    )
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if not line.startswith("searched")] == [
        "question", "answer", "before", "trained", "after",
    ]  # fmt: skip
    first = said[0].removeprefix("question: ").split()[0]
    assert said[1].startswith(f"searched: '{first} "), "the student has learned to search for the question"
    assert "trained:  1 step" in "\n".join(said) and (folder / "out" / "best" / "model.safetensors").is_file()
