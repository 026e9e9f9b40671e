"""The option that `make test-versions` runs with: what it skips, and what stays a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SUITE = """
import subprocess, sys

def test_an_import():
    import no_such_package.inner

def test_a_child():
    child = subprocess.run([sys.executable, "-c", "import no_such_package"], capture_output=True, text=True)
    print(child.stderr)
    assert child.returncode == 0

def test_another_package():
    import nothing_of_that_name

def test_a_failure():
    assert 1 == 2

def test_that_passes():
    pass
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "test_module.py").write_text("import no_such_package\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "absent", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(TESTS)})


def test_only_what_stops_at_the_absent_package_is_skipped(tmp_path: Path) -> None:
    ended = run(tmp_path, "--without", "no_such_package")
    assert ended.returncode == 1
    assert "2 failed, 1 passed, 3 skipped" in ended.stdout
    assert "2 tests skipped: needs no_such_package, which is absent" in ended.stdout
    for name in ("test_another_package", "test_a_failure"):
        assert f"FAILED test_suite.py::{name}" in ended.stdout


def test_nothing_is_skipped_unless_it_is_asked_for(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert "1 error" in ended.stdout and " skipped" not in ended.stdout


def test_a_package_that_is_installed_excuses_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "--without", "no_such_package,rich")
    assert ended.returncode == 4
    assert "--without rich: installed here, so nothing may be skipped for it" in ended.stderr
