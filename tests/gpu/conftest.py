"""Tests of what only a GPU does, each beside the CPU; skipped where there is none, `--device cpu` tries the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="of the tests in tests/gpu: cuda, cuda:1, or cpu to try them")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """What is compared with the CPU."""
    found = torch.device(request.config.getoption("--device", default="cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """For what a CPU cannot even try."""
    if device.type != "cuda":
        pytest.skip("no GPU")
    return device


@pytest.fixture(autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
