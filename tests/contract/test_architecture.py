"""Rules of the house that a reader relies on: who imports whom, what is never used, how long a file may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from dgpo_cli.cli import app

PACKAGE = Path(__file__).parents[2] / "src" / "dgpo_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# A package imports what stands to its left; those of one level do not import each other.
LEVELS = (
    {"errors"},
    {"core"},
    {"formats"},
    {"models", "retrieval", "objectives", "rewards", "qa_sets"},
    {"engine"},
    {"agent"},
    {"training", "evaluation", "serving"},
    {"offline", "planning", "viewing", "export", "make_questions"},
    {"launch"},
    {"console", "library"},
    {"__init__"},  # the public names, for type checkers; at run time they are loaded on first use
    {"commands"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HEAVY = ("torch", "transformers", "datasets", "faiss", "bitsandbytes", "bm25s", "accelerate", "matplotlib", "numpy",
         "peft", "fastapi", "uvicorn", "pymilvus", "milvus_lite", "grpc")  # fmt: skip
COMMANDS = cast(Any, typer.main.get_command(app)).list_commands(None)


def name_of(path: Path) -> str:
    """The package, or the module directly under dgpo_cli, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            assert node.module is not None
            found.append((node.module, node.lineno))
            if node.module == "dgpo_cli":
                found += [(f"dgpo_cli.{alias.name}", node.lineno) for alias in node.names]
    return found


def wrong_imports(source: str, owner: str) -> list[str]:
    """Imports of a module of package `owner` that go up or sideways."""
    wrong = []
    for module, line in imports_of(ast.parse(source)):
        parts = module.split(".")
        if parts[0] != "dgpo_cli" or len(parts) == 1:
            continue
        target = parts[1]
        if target in LEVEL and target != owner and LEVEL[target] >= LEVEL[owner]:
            wrong.append(f"line {line}: {owner} imports {target}")
    return sorted(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    assert name_of(path) in LEVEL, f"{path} belongs to no level"
    assert wrong_imports(path.read_text(encoding="utf-8"), name_of(path)) == []


def test_the_import_rule_sees_a_violation() -> None:
    source = (
        "def f():\n    from dgpo_cli.training.step import x\nimport dgpo_cli.models.load\nfrom dgpo_cli import cli\n"
    )
    assert wrong_imports(source, "retrieval") == [
        "line 2: retrieval imports training",
        "line 3: retrieval imports models",
        "line 4: retrieval imports cli",
    ]
    assert wrong_imports("from dgpo_cli.core.types import Hit", "retrieval") == []


MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
MOST = 9  # packages that one package imports, beside `errors`, which all of them raise


def modules_of(path: Path) -> set[str]:
    """Modules of this package that a file imports: at its top, where it needs them, or for types only."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dgpo_cli."):
            named |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("dgpo_cli.") for name in named} & set(MODULES)


def test_no_package_imports_more_than_nine_others() -> None:
    """Commands put together what a person asked for, so that each of their files is held by itself."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        owner = name_of(path)
        packages = {module.split(".")[0] for module in modules_of(path)} - {owner, "errors", "__init__"}
        found.setdefault(str(path.relative_to(PACKAGE)) if owner == "commands" else owner, set()).update(packages)
    assert {name: sorted(others) for name, others in found.items() if len(others) > MOST} == {}


def ring_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at its end; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        ring = next((ring for other in sorted(graph[module]) if (ring := visit(other, [*way, module]))), [])
        done.add(module)
        return ring

    return next((ring for module in sorted(graph) if (ring := visit(module, []))), [])


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert ring_of({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert ring_of({name: modules_of(path) for name, path in MODULES.items()}) == []


def test_no_two_classes_share_a_name() -> None:
    """Apart from `Config`, by which every objective calls its settings."""
    classes: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "Config":
                classes.setdefault(node.name, []).append(path.name)
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}


def test_only_the_console_imports_rich() -> None:
    users = {
        name_of(p)
        for p in FILES
        for module, _ in imports_of(ast.parse(p.read_text()))
        if module.split(".")[0] == "rich"
    }
    assert users == {"console"}


def test_accelerate_says_where_training_runs_and_speaks_to_trackers_and_nothing_else() -> None:
    users = {p.name for p in FILES for m, _ in imports_of(ast.parse(p.read_text())) if m.split(".")[0] == "accelerate"}
    assert users == {"devices.py", "tracking.py"}


def forbidden_in(source: str) -> list[str]:
    """What could run code that comes with a file: pickle in any dress, or the code of a model repository."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + ([node.module] if isinstance(node, ast.ImportFrom) else [])
            found += [
                f"import {n}"
                for n in names
                if n and n.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "shelve")
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "torch.save", "eval", "exec", "__import__", "os.system"):
                found.append(called)
            for keyword in node.keywords:
                if (
                    keyword.arg in ("trust_remote_code", "allow_pickle", "shell")
                    and ast.unparse(keyword.value) != "False"
                ):
                    found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_run_code(path: Path) -> None:
    assert forbidden_in(path.read_text(encoding="utf-8")) == []


def test_the_code_rule_sees_a_violation() -> None:
    source = (
        "import pickle\nfrom joblib import load\ntorch.load(p)\nnp.load(p, allow_pickle=True)\nf(trust_remote_code=x)"
    )
    assert sorted(forbidden_in(source)) == sorted(
        ["import pickle", "import joblib", "torch.load", "allow_pickle=True", "trust_remote_code=x"]
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    limit = 160 if name_of(path) == "commands" else 310
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_begins_by_saying_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "path", [p for p in FILES if LEVEL[name_of(p)] < LEVEL["launch"]], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_below_the_commands_nothing_prints_or_asks_the_environment(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not calls & {"print", "input", "sys.stdout.write", "sys.stderr.write", "os.getenv"}
    assert not attributes & {"os.environ", "sys.argv"}


PROBE = """
import json, sys
from dgpo_cli.cli import main
try:
    main({argv!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(m for m in {heavy!r} if m in sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    probe = PROBE.format(argv=argv, heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stderr.splitlines()[-1]) == []
    assert "Usage: " in ended.stdout
