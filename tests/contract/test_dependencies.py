"""Every library that the sources import is declared: for all, or as an extra that a one-line error names."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from dgpo_cli.core.extras import require
from dgpo_cli.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ON_ITS_OWN = {"trackio", "vllm"}  # asks for other versions than the rest; installed by hand
NAMES = {
    "pptx": "python-pptx",
    "Stemmer": "pystemmer",
    "faiss": "faiss-cpu",
    "grpc": "grpcio",
}  # where the import has another name


def third_party(source: str) -> set[str]:
    """First parts of what a file imports from outside the standard library and this package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"dgpo_cli"}


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ;]", line)[0].lower().replace("_", "-") for line in requirements}


def test_every_import_is_declared() -> None:
    core = declared(PROJECT["dependencies"])
    extras = set().union(
        *(declared(lines) for name, lines in PROJECT["optional-dependencies"].items() if name != "dev")
    )
    used = set().union(*(third_party(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")))
    names = {NAMES.get(module, module).lower().replace("_", "-") for module in used}
    assert names - core - extras - ON_ITS_OWN == set()
    assert {"typer", "rich", "torch", "transformers", "accelerate", "bitsandbytes", "datasets", "rank-bm25",
            "faiss-cpu"} <= core  # fmt: skip
    rare = {
        "requests",
        "fastapi",
        "uvicorn",
        "prometheus-client",
        "pypdf",
        "mammoth",
        "matplotlib",
        "pymilvus",
        "gguf",
        "wandb",
    }
    assert rare.isdisjoint(core), "few commands need these"
    assert {"torch", "transformers", "rich", "typer"} <= names, "the search finds imports"


def test_the_developers_environment_has_every_extra_that_tests_use() -> None:
    line = next(line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("dgpo-cli["))
    assert {"pdf", "office", "serve", "milvus"} <= set(re.findall(r"[a-z]+", line.partition("[")[2]))
    assert metadata.version("pypdf") and metadata.version("fastapi")


def test_every_extra_is_named_by_an_error_of_one_line() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'(?:require\([^,()]+, |installing\()"([a-z]+)"', sources))
    by_hand = {"dev", "docs", "vllm", "trackers"}  # --engine vllm and --report-to name the package; make takes docs
    assert named == PROJECT["optional-dependencies"].keys() - by_hand


@pytest.mark.parametrize(
    ("argv", "module", "extra"),
    [
        (("reproduce",), "matplotlib", "plots"),
        (("serve",), "prometheus_client", "serve"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_command_without_its_extra_ends_before_it_does_anything(
    argv: tuple[str, ...], module: str, extra: str, dgpo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo_cli.core.extras.is_installed", lambda name: name != module)
    ended = dgpo(*argv)
    assert ended.status == 1 and f"needs {module}, which is not installed" in ended.err and f"'.[{extra}]'" in ended.err
    assert list(folder.iterdir()) == []


def test_pages_and_the_image_name_extras_that_exist() -> None:
    pages = [ROOT / "Dockerfile", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = [one for page in pages for one in re.findall(r"'\.\[([a-z,]+)\]'", page.read_text(encoding="utf-8"))]
    assert len(named) > 5
    assert {extra for one in named for extra in one.split(",")} - PROJECT["optional-dependencies"].keys() == set()


def test_the_image_is_built_from_all_that_the_wheel_needs() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE) for name in line.split()}
    needed = {"pyproject.toml", "constraints.txt", "src", PROJECT["readme"], *PROJECT["license-files"]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert needed == copied == allowed


def test_a_missing_extra_is_one_line_that_names_it() -> None:
    require("json", "pdf", "x")
    with pytest.raises(ConfigError, match="a PDF file needs no_such_module, which is not installed") as caught:
        require("no_such_module", "pdf", "a PDF file")
    assert caught.value.hint is not None and "'.[pdf]'" in caught.value.hint


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = (re.match(r"([A-Za-z0-9_.-]+)==(\S+)", line) for line in lines)
    return {pair[1].lower().replace("_", "-"): pair[2] for pair in pairs if pair}


def test_lower_bounds_are_the_oldest_versions_that_the_tests_run_with() -> None:
    """`make test` runs with those of constraints.txt, `make test-versions` with those of tests/versions.txt."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    bounds = {name.lower().replace("_", "-"): at for lines in groups for name, at in map(bound, lines) if at}
    run = [pins("constraints.txt"), pins("tests/versions.txt")]
    for name, at in bounds.items():
        if name not in ON_ITS_OWN:
            assert at == min((found[name] for found in run if name in found), key=Version), name
    assert len(bounds) > 30


def test_the_next_major_version_of_what_is_known_to_break_is_kept_out() -> None:
    """Libraries whose last major release changed what is called here, and those before 1.0, which may at any time."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = {one.name.lower(): one for lines in groups for one in map(Requirement, lines)}
    run = [pins("constraints.txt"), pins("tests/versions.txt")]
    for name in ("torch", "transformers", "huggingface-hub", "numpy", "datasets", "tokenizers", "accelerate", "typer",
                 "bitsandbytes", "bm25s", "faiss-cpu", "prompt-toolkit", "plotext", "pydantic", "starlette", "fastapi",
                 "uvicorn", "pymilvus", "milvus-lite", "gguf", "pypdf", "mammoth", "openpyxl",
                 "python-pptx", "prometheus-client"):  # fmt: skip
        specifier, tested = requirements[name].specifier, max(Version(found[name]) for found in run if name in found)
        assert not specifier.contains(f"{tested.major + 1}.0"), name
        assert all(specifier.contains(found[name]) for found in run if name in found), name


def bound(requirement: str) -> tuple[str, str]:
    name, _, rest = requirement.partition(">=")
    return name, rest.split(",")[0]
