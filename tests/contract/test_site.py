"""The site of docs/ is built without network, with its formulas set, and a broken link fails the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from dgpo_cli.core import registry
from dgpo_cli.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[2]
MADE = [path.stem for path in (ROOT / "docs").rglob("*.md")]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs-site")
    pytest.importorskip("latex2mathml")
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE"):
        shutil.copy(path, tmp_path)
    return tmp_path


def build(sources: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(sources / "site")],
        cwd=sources,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_site_is_built_with_formulas_and_search_and_takes_nothing_from_a_network(sources: Path) -> None:
    ended = build(sources)
    assert ended.returncode == 0, ended.stderr
    site = sources / "site"
    assert len(MADE) > 20 and (site / "search" / "search_index.json").is_file()
    for name in OBJECTIVES:
        page = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page and "\\pi" not in page
    symbols = (site / "methods" / "index.html").read_text(encoding="utf-8").split('id="symbols"')[1].split("</table")[0]
    assert symbols.count('display="inline"') > 20 and "\\" not in symbols and "`" not in symbols
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = [part for part in text.split("<") if part.startswith(("script", "link", "img", "iframe"))]
        assert [part for part in loaded if 'src="http' in part or 'href="http' in part] == [], page


@pytest.mark.slow
def test_what_leads_nowhere_fails_the_build(sources: Path) -> None:
    lost = {
        "index.md": "[lost](nowhere.md)",
        "how-to.md": "[lost](formats.md#no-such-part)",
        "orphan.md": "# A page that the list of pages lacks",
    }
    for page, text in lost.items():
        with (sources / "docs" / page).open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    ended = build(sources)
    assert ended.returncode != 0
    assert [lack for lack in ("nowhere.md", "no-such-part", "orphan.md") if lack not in ended.stderr] == []
    assert "3 warnings" in ended.stdout + ended.stderr


@pytest.mark.parametrize("latex", [r"\nosuchcommand{x}", r"\begin{aligned} a &= b \end{aligned}"])
def test_a_formula_that_cannot_be_set_is_refused(latex: str, sources: Path) -> None:
    spec = spec_from_file_location("site_hooks", sources / "docs" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert "<mfrac>" in hooks.mathml(r"\frac{1}{2}", "block")
    with pytest.raises(Exception, match="formula"):
        hooks.mathml(latex, "block")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_states_its_formula(name: str) -> None:
    formulas = registry.load(OBJECTIVES, name, "method").__dict__["formulas"]
    assert formulas.count("{") == formulas.count("}") and ": " in formulas
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.count("```math") == formulas.strip().count("\n        ") + 1 - formulas.count("\n            ")
