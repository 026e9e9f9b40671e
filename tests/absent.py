"""`pytest --without faiss,bm25s`: the suite where optional packages are absent, as on a machine that nothing reaches.

A test that fails, in this process or in one that it started, because one of them cannot be imported is told as skipped,
with the package's name. The packages must really be absent, and any other failure stays one. `make test-versions` loads
this file (`-p absent`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without", default="", metavar="A,B", help="absent packages: what stops at the import of one is skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    names = _absent(config)
    present = [name for name in names if find_spec(name) is not None]
    if present:
        raise pytest.UsageError(f"--without {','.join(present)}: installed here, so nothing may be skipped for it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skip_if_absent(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skip_if_absent(collector.config, report)
    return report


def pytest_runtest_logreport(report: Any) -> None:
    """Where tests run in several processes, this is what reaches the first one."""
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if reason.startswith("needs "):
        _COUNTS[reason] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, count in _COUNTS.most_common():
        terminalreporter.write_line(f"{count} tests skipped: {reason}")


_COUNTS: Counter[str] = Counter()


def _absent(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--without").split(",") if name]


def _skip_if_absent(config: pytest.Config, report: Any) -> None:
    names = _absent(config)
    if not names or not report.failed:
        return
    told = "\n".join([str(report.longrepr), *(text for _, text in report.sections)])
    before = r"No module named '|No package metadata was found for |\b(?:needs|requires) "
    found = re.search(rf"(?:{before})({'|'.join(names)})\b", told)
    if found:
        report.outcome = "skipped"
        report.longrepr = ("", 0, f"needs {found[1]}, which is absent")
