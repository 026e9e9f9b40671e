"""The wheel and the source archive, built and used as somebody would who has nothing else."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomli_w
from tests.offline import small_recipe

import dgpo_cli

ROOT = Path(__file__).parents[2]


def run(*argv, cwd, env=None):
    ended = subprocess.run(
        list(map(str, argv)), cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both archives, and an environment with the wheel in it.

    Its dependencies are those of this environment, whose own dgpo is not seen from there.
    """
    root = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", root / "venv", cwd=root)
    python = root / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "hatchling>=1.27", cwd=root)
    # Sources in a folder of their own: the build reads the tree, .gitignore included.
    listed = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in (name for name in listed if (ROOT / name).is_file()):
        place = root / "source" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((ROOT / name).read_bytes())
    run(python, "-m", "hatchling", "build", "-d", root / "dist", cwd=root / "source")
    (wheel,) = (root / "dist").glob("*.whl")
    (source,) = (root / "dist").glob("*.tar.gz")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=root)
    site = next((root / "venv/lib").glob("python3*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return root, wheel, source, listed


@pytest.mark.slow
def test_the_archives_hold_every_file_of_the_package(built):
    _, wheel, source, listed = built
    package = {name.removeprefix("src/") for name in listed if name.startswith("src/dgpo_cli/")}
    assert package <= set(zipfile.ZipFile(wheel).namelist()) and len(package) > 300
    prefix = f"dgpo_cli-{dgpo_cli.__version__}/"
    with tarfile.open(source) as archive:
        names = {name.removeprefix(prefix) for name in archive.getnames()}
    assert {f"src/{name}" for name in package} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt"} <= names
    assert wheel.name == f"dgpo_cli-{dgpo_cli.__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_the_installed_wheel_works_without_the_sources(built, tmp_path):
    root = built[0]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def dgpo(*argv):
        return run(root / "venv/bin/dgpo", *argv, cwd=tmp_path, env=environment)

    program = "import dgpo_cli; print(dgpo_cli.__file__)"
    where = run(root / "venv/bin/python", "-c", program, cwd=tmp_path, env=environment)
    assert where.startswith(str(root))
    assert dgpo("--version").strip() == f"dgpo {dgpo_cli.__version__}"
    assert "quickstart" in dgpo("--help")
    dgpo("quickstart", "--dry-run")
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "title": "Tower", "text": "Ada Byron built it."}\n')
    dgpo("index", "corpus.jsonl", "--out", "index")
    assert "Tower" in dgpo("search", "who built the tower", "--index", "index", "-k", "1")


@pytest.mark.slow
def test_the_installed_wheel_runs_a_whole_quickstart(built, tmp_path):
    """Every stage of the command, its recipe made small in the installed package, then what it proposes."""
    root = built[0]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (shipped,) = (root / "venv/lib").glob("python3*/site-packages/dgpo_cli/recipes/quickstart.toml")
    whole = shipped.read_text()
    shipped.write_text(tomli_w.dumps(small_recipe()))
    try:
        said = run(root / "venv/bin/dgpo", "quickstart", cwd=tmp_path, env=environment)
    finally:
        shipped.write_text(whole)
    assert "30 held-out test questions" in said and "dgpo, full-loss" in said
    runs = run(root / "venv/bin/dgpo", "runs", "--json", cwd=tmp_path, env=environment)
    assert {"kd", "ppo", "dgpo", "dgpo_k1", "eval-dgpo"} <= {Path(one["path"]).name for one in json.loads(runs)["runs"]}
    run(root / "venv/bin/dgpo", "eval", "--limit", "3", cwd=tmp_path, env=environment)
    run(root / "venv/bin/dgpo", "report", cwd=tmp_path, env=environment)


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", dgpo_cli.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and f'"{dgpo_cli.__version__}"' not in project
