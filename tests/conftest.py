"""What every test gets: one thread, deterministic torch, no network, and a folder of its own where it asks for one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Set before torch or transformers is imported anywhere; processes that tests start inherit them.
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    PYTHONHASHSEED="0",
)
os.environ.pop("DGPO_DEBUG", None)

SOURCES = Path(__file__).parent.parent / "src"


@pytest.fixture(autouse=True)
def _deterministic_torch() -> Iterator[None]:
    """One thread and a fixed seed, without importing torch into tests that do without it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _device_of_searches() -> Iterator[None]:
    """A command chooses it for its process; here many commands share one."""
    yield
    place = sys.modules.get("dgpo_cli.retrieval.device")
    if place is not None:
        place.use_device("auto")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: relative paths, the workspace and runs/ land here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture
def dgpo(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process, in `folder`: `dgpo("index", "corpus.jsonl")`."""
    from dgpo_cli.cli import main

    def run(*argv: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        captured = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory):
    """A very small world with index, teacher and student; read it, do not write to it."""
    from tests.offline import make

    return make(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="session")
def searcher(offline, tmp_path_factory):
    """Its student after a few seconds of learning to search for what the question says; its answers are wrong."""
    from tests.offline import make_searcher

    return make_searcher(offline, tmp_path_factory.mktemp("searcher"))
