"""README's figures are those of docs/results.md, and it stays short."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"student (reads, cannot search)"}  # 0.0 in every seed


def figures(text: str, heading: str) -> dict[str, list[str]]:
    """The first table after `heading`: by row, the first number of each cell, or its words."""
    lines = text[text.index(heading) :].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| "))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip().strip("*") for cell in line.strip("|").split("|"))
        rows[name] = [re.match(r"[\d.]+|.*", cell)[0] for cell in cells]
    return rows


def test_readme_shows_every_row_of_the_quickstart_as_it_was_measured() -> None:
    measured = figures((ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "## Quickstart")
    shown = figures((ROOT / "README.md").read_text(encoding="utf-8"), "The quickstart on three seeds")
    assert len(measured) == 7
    assert shown == {name: row for name, row in measured.items() if name not in LEFT_OUT}
    assert {"dgpo_k1", "ppo"} <= {name.strip("`") for name in shown}


def test_a_table_is_read_to_its_end_and_no_further() -> None:
    text = "# A\n\n| | s |\n|---|---|\n| **`x`** | 1.5 (1-2) |\n\n| y | 2 |\n"
    assert figures(text, "# A") == {"`x`": ["1.5"]}


def test_readme_shows_the_real_model_as_it_was_measured() -> None:
    measured = figures((ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "## A real model")
    shown = figures((ROOT / "README.md").read_text(encoding="utf-8"), "SmolLM2-135M on questions of four real sets")
    assert {"raw", "cold start"} <= shown.keys()
    assert shown == {name: measured[name][:2] for name in shown}


def test_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
