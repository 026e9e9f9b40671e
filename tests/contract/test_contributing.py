"""The doors for contributors lead somewhere: files, targets, hooks and commands that are named exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_guide_names_files_and_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)", GUIDE)) - targets == set()
    names = {name for name in re.findall(r"`([\w./-]+\.(?:py|md))(?::\w+)?`", GUIDE) if not name.endswith("NEW.py")}
    found = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    found |= {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.md") if ".venv" not in path.parts}
    assert {name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in found)} == set()
    assert len(names) > 10


def test_the_fast_tests_are_files_of_the_suite() -> None:
    listed = MAKEFILE.split("FAST := ")[1].split("\n\n")[0].replace("\\\n", " ")
    units = listed.partition("tests/unit/test_,")[2].rstrip(") ").split()
    assert [name for name in units if not (ROOT / "tests" / "unit" / f"test_{name}.py").is_file()] == []
    assert 30 < len(units) == len(set(units)) < len(list((ROOT / "tests" / "unit").glob("test_*.py")))


def test_the_workflow_runs_what_everybody_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["checks"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert workflow["permissions"] == {"contents": "read"}


def test_the_hooks_are_programs_of_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    programs = [shlex.split(hook["entry"]) for hook in hooks]
    assert {Path(words[0]).name for words in programs} == {"ruff", "mypy", "python"}
    assert all(words[0].startswith(".venv/bin/") for words in programs)
    assert all((ROOT / word).is_file() for words in programs for word in words[1:] if word.endswith(".py"))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.name)
def test_the_forms_for_issues_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        return
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"] if "id" in field]
    assert len(ids) == len(set(ids)) > 0
    if path.name == "bug.yml":
        asked = {field["id"]: field for field in form["body"] if "id" in field}
        assert "dgpo doctor --json" in asked["doctor"]["attributes"]["label"]
        assert asked["doctor"]["validations"]["required"] is True
