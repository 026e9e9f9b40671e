"""A command whose standard streams are closed works as one whose output nobody reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIRST_FILE = (
    "import dgpo_cli.__main__, sys; f = open('f', 'w'); f.write(str(f.fileno())); "
    "print('x'); print('y', file=sys.stderr)"
)


def shell(command: str, redirections: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Bash closes them for the one command.
    line = f"{sys.executable} {command} {redirections}"
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_command_works_and_its_status_tells_how_it_ended(closed: str, tmp_path: Path) -> None:
    fine, wrong = (shell(f"-m dgpo_cli runs {options}", closed, tmp_path) for options in ("", "--keep 1"))
    assert (fine.returncode, wrong.returncode) == (0, 1)
    assert "Traceback" not in fine.stderr + wrong.stderr


@pytest.mark.parametrize(("full", "status"), [(">/dev/full", 1), ("2>/dev/full", 0), (">/dev/full 2>&1", 1)])
@pytest.mark.parametrize("command", ["runs", "--help", "recipes --json"])
def test_a_stream_on_a_full_disk_is_one_line(command: str, full: str, status: int, tmp_path: Path) -> None:
    ended = shell(f"-m dgpo_cli {command}", full, tmp_path)
    assert ended.returncode == status
    told = [line for line in ended.stderr.splitlines() if not line.startswith("hint:")]
    assert told == (["error: no room to write: No space left on device"] if full == ">/dev/full" else [])


def test_work_goes_on_where_its_remarks_cannot_be_written(tmp_path: Path) -> None:
    work = "from dgpo_cli.console import Console; c = Console(); c.info('x'); c.warn('y'); c.print('the result')"
    assert shell(f'-c "{work}"', "2>/dev/full", tmp_path).stdout == "the result\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    ended = shell("-m dgpo_cli recipes", "2>&1 | true; exit ${PIPESTATUS[0]}", tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_no_file_gets_the_number_of_a_stream(tmp_path: Path) -> None:
    assert shell(f'-c "{FIRST_FILE}"', ">&- 2>&- <&-", tmp_path).returncode == 0
    assert int((tmp_path / "f").read_text()) > 2
