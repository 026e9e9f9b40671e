"""`dgpo serve` against its own OpenAPI description (schemathesis), and 64 clients for three minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.served import ask, served

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("DGPO_LOAD_SECONDS", "180"))
EXAMPLES = 500  # per operation
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)  # fmt: skip; values of a neighbouring type, such as "3" for 3, are accepted on purpose


def test_every_answer_is_one_that_the_description_names(offline) -> None:  # type: ignore[no-untyped-def]
    with served(offline.index) as server:
        ended = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
                "--max-examples", str(EXAMPLES), "--seed", "0", "--generation-database", "none",
                "--checks", ",".join(CHECKS),
            ],
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
        assert ask(f"{server.url}/health").json["status"] == "ok"
        assert server.metric("dgpo_request_errors_total") > 0, "refusals were among them"
        assert "Traceback" not in server.stop()


def test_64_clients_for_three_minutes(offline, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--index", str(offline.index),
            "--seconds", str(SECONDS), "--clients", "64",
        ],
        capture_output=True, text=True, timeout=SECONDS + 300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    print(ended.stderr[-500:])
    assert result["errors"] == 0 and result["requests"] > 0
    start, end = (result["memory_mb"][when]["own"] for when in ("half", "end"))
    assert end < 1.1 * start + 5, "memory is flat in the second half"
