"""The measures of docs/architecture.md: what can be counted is counted here, and held to the bounds of its table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "dgpo_cli"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
Function = ast.FunctionDef | ast.AsyncFunctionDef

# What a module keeps and something else writes, each with the reason why it is not handed on in an object.
STATE = {
    "retrieval/device.py: global _name": "a command chooses one device for all of its searches, in all threads",
    "retrieval/remote/search_r1.py: global _access": "the token of the environment, which no settings and no run hold",
    "retrieval/remote/milvus/connection.py: global _access": "as that of search servers",
    "models/ways.py: Ways()": "switches between equally right kernels, set by benchmarks before they measure",
    "core/hub.py: cached unreachable()": "whether the hub answers, asked once",
    "models/devices.py: cached world()": "the processes of a launcher, joined once",
    "models/half.py: cached processor_has_bf16()": "a fact of the machine",
    "core/disguises.py: cached _styled()": "a table of characters, made on first use",
    "retrieval/lexical/scripts.py: cached _patterns()": "compiled patterns, made on first use",
    "serving/page/__init__.py: cached chat_page()": "the page as it lies in the package",
}
_WRITES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard"}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def arguments(function: Function) -> Iterator[ast.arg]:
    found = function.args
    each = (*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg)
    return (one for one in each if one is not None and one.arg not in ("self", "cls"))


def per_thousand_arguments(trees: list[ast.Module]) -> float:
    """How often `dict[str, Any]` stands in a signature: of an argument, or of what is returned."""
    count = untyped = 0
    for function in (one for tree in trees for one in functions(tree)):
        given = list(arguments(function))
        count += len(given)
        shown = [ast.unparse(note) for note in (*(arg.annotation for arg in given), function.returns) if note]
        untyped += sum("dict[str, Any]" in text for text in shown)
    return 1000 * untyped / count


def states(name: str, tree: ast.Module) -> set[str]:
    """Values of a module that its functions write or keep: names, its own mutable records, caches of no argument."""
    found, own = set[str](), set[str]()
    changeable = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and _is_mutable_record(node)}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {target.id for target in targets if isinstance(target, ast.Name)}
            made = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
            found |= {f"{made}()"} & {f"{kind}()" for kind in changeable}
    for function in functions(tree):
        cached = any(re.search(r"\b(lru_)?cache\b", ast.unparse(d)) for d in function.decorator_list)
        if cached and not list(arguments(function)):
            found.add(f"cached {function.name}()")
        found |= {f"global {one}" for node in ast.walk(function) if isinstance(node, ast.Global) for one in node.names}
        found |= {f"{one} is written" for one in _written_in(function) & own}
    return {f"{name}: {one}" for one in found}


def _is_mutable_record(node: ast.ClassDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any("dataclass" in text and "frozen" not in text for text in decorators)


def _written_in(function: Function) -> set[str]:
    """Names, but for those of the function's own, whose content it changes."""
    inside = {arg.arg for arg in arguments(function)}
    inside |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    written: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            written.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WRITES:
            written.append(node.func.value)
    return {node.id for node in written if isinstance(node, ast.Name)} - inside


def test_no_module_keeps_state_that_is_not_argued_for() -> None:
    assert set().union(*(states(name, tree) for name, tree in TREES.items())) == set(STATE)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a = 1\ndef f():\n    global a\n    a = 2", {"m: global a"}),
        ("known = {}\ndef f(x):\n    known[x] = 1", {"m: known is written"}),
        ("known: list[int] = []\ndef f(x):\n    def g():\n        known.append(x)\n    g()", {"m: known is written"}),
        ("known = {}\ndef f(known):\n    known['a'] = 1", set()),
        ("from functools import cache\n@cache\ndef f(): ...\n@cache\ndef g(x): ...", {"m: cached f()"}),
        ("@dataclass(slots=True)\nclass A: ...\nONE = A()", {"m: A()"}),
        ("@dataclass(frozen=True)\nclass A: ...\nONE = A()", set()),
    ],
)
def test_the_rule_of_state_sees_each_kind(source: str, found: set[str]) -> None:
    assert states("m", ast.parse(source)) == found


def bound(measure: str) -> int:
    """The bound that the page's table has for a measure."""
    (found,) = re.findall(rf"^\| {re.escape(measure)} \| (\d+) \|", PAGE, re.MULTILINE)
    return int(found)


def test_signatures_have_types() -> None:
    sample = "def f(a: dict[str, Any], b: int) -> dict[str, Any]: ..."
    sample += "\nclass A:\n    def g(self, c: list[dict[str, Any]], *d): ..."
    assert per_thousand_arguments([ast.parse(sample)]) == 1000 * 3 / 4
    assert per_thousand_arguments(list(TREES.values())) <= bound("`dict[str, Any]` in signatures, per 1,000 arguments")


def test_files_and_functions_are_short() -> None:
    files = [len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")]
    assert max(files) <= bound("lines of the largest file")
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for tree in TREES.values() for f in functions(tree))
    assert lengths[len(lengths) * 95 // 100] <= bound("lines of a function, 95th percentile")


def test_imports_stay_within_what_the_page_says() -> None:
    from tests.contract import test_architecture

    assert bound("packages that a package imports") == test_architecture.MOST
    assert bound("import cycles") == 0, "held by test_no_modules_import_each_other_in_a_ring"


@pytest.mark.parametrize("measure", re.findall(r"^\| (files for: [^|]+) \|", PAGE, re.MULTILINE))
def test_a_question_is_answered_by_few_files_at_the_places_that_are_named(measure: str) -> None:
    (row,) = re.findall(rf"^\| {re.escape(measure.removeprefix('files for: '))} \| (.*) \|$", PAGE, re.MULTILINE)
    places = re.findall(r"`([\w/]+\.py)` \(`(\w+)`", row)
    assert len(places) == len(re.findall(r"\.py`", row)) <= bound(measure)
    assert [(file, name) for file, name in places if name not in {f.name for f in functions(TREES[file])}] == []
