"""A helper process ends with the one that started it, however that one ends, and holds no lock beyond it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgpo_cli.core.locks import is_held

PARENT = """
import multiprocessing, os, sys, time
from pathlib import Path
from dgpo_cli.core.child import end_with_parent
from dgpo_cli.core.locks import Lock

def work(platform):
    sys.platform = platform
    end_with_parent()
    with Lock.inside(Path("run")):
        Path("helper").write_text(str(os.getpid()))
        time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1],), daemon=True).start()
    time.sleep(600)
"""

# The helper of the quickstart itself, with rows that take for ever. The file is run again in the helper.
QUICKSTART = """
import os, time
from pathlib import Path
from dgpo_cli.core.locks import Lock
from dgpo_cli.offline import quickstart

def forever(self, row, start, teacher):
    with Lock.inside(Path("run")):
        Path("helper").write_text(str(os.getpid()))
        time.sleep(600)

quickstart.Quickstart._row = forever
os.cpu_count = lambda: 2
if __name__ == "__main__":
    work = quickstart.Quickstart(Path("q"), seed=0, device="cpu", say=print, bar=quickstart._no_bar)
    with work._beside(["ppo"], Path("start"), Path("teacher")):
        time.sleep(600)
"""


def wait_for(condition, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc/self").exists() else True


@pytest.mark.parametrize(
    ("code", "argument", "number"),
    [
        pytest.param(PARENT, "linux", signal.SIGKILL, id="linux"),
        pytest.param(PARENT, "darwin", signal.SIGKILL, id="any system, kill -9"),
        pytest.param(PARENT, "darwin", signal.SIGTERM, id="any system, kill"),
        pytest.param(QUICKSTART, "", signal.SIGKILL, id="quickstart", marks=pytest.mark.slow),
    ],
)
def test_a_helper_ends_with_its_parent(tmp_path: Path, code: str, argument: str, number: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), argument], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        assert wait_for((tmp_path / "helper").is_file, 120)
        assert wait_for(lambda: (tmp_path / "helper").read_text() != "", 5)
        helper = int((tmp_path / "helper").read_text())
        assert is_held(tmp_path / "run" / ".lock")
        parent.send_signal(number)
        parent.wait(10)
        assert wait_for(lambda: not is_alive(helper), 5)
        # A process shows as ended while threads of its libraries still end, and with the last of them its files close.
        assert wait_for(lambda: not is_held(tmp_path / "run" / ".lock"), 5)
    finally:
        parent.kill()
        parent.wait()
