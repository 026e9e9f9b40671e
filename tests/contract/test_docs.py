"""Pages that follow from the code are as the code says, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo_cli.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_generated_pages_and_the_list_of_flags_are_not_stale() -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
    assert len(PAGES) > 8


def test_the_pages_name_only_commands_and_options_that_exist() -> None:
    flags = (ROOT / "tests" / "contract" / "cli_flags.txt").read_text(encoding="utf-8").splitlines()
    known: dict[str, set[str]] = {}
    for line in flags:
        words = line.replace(",", "").split()
        command = " ".join(word for word in words if not word.startswith("-") and word.islower())
        known.setdefault(command, set()).update(word for word in words if word.startswith("-"))
    commands = {name.split()[1] for name in known}
    wrong = []
    for page in (page for page in PAGES if page.name != "benchmarks.md"):  # it shows tables of programs
        for call in re.findall(r"dgpo ((?:[a-z]|--)[^`|#\n]*)", _code(page.read_text(encoding="utf-8"))):
            words = call.split()
            if words[0].startswith("-"):
                continue
            if words[0].rstrip(",.") not in commands:
                wrong.append(f"{page.name}: dgpo {call}")
                continue
            sub = " ".join(words[:2]) if f"dgpo {' '.join(words[:2])}" in known else words[0]
            sub = "index build" if sub == "index" else sub
            options = known.get(f"dgpo {sub}", set()) | {"--help"}
            wrong += [
                f"{page.name}: dgpo {call}" for w in words if w.startswith("--") and w.rstrip(",.") not in options
            ]
    assert wrong == [], "\n".join(wrong)


def _code(page: str) -> str:
    """The blocks and the marked words of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", rest)])


def test_the_first_page_names_every_method_and_where_it_is_explained() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in OBJECTIVES if f"[`{name}`](docs/methods/{name}.md)" not in page] == []


def test_the_architecture_page_names_what_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = ROOT / "src" / "dgpo_cli"
    named = re.findall(r"`((?:\w+/)*\w+(?:/|\.py))`", page)
    assert len(named) > 20
    places = (sources, *(sources / package for package in ("retrieval", "engine", "training", "offline", "commands")))
    missing = [name for name in named if not any((place / name).exists() for place in (*places, ROOT))]
    assert missing == []
    packages = {path.name.removesuffix(".py") for path in sources.iterdir() if not path.name.startswith(("_", "py."))}
    assert {name for name in packages - {"recipes"} if f"`{name}`" not in page} == set()
