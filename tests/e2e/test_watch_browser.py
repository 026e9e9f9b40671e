"""`dgpo report --watch` in a real browser while `dgpo rl` is at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chromium import NEEDS_CHROMIUM, chromium
from tests.conftest import SOURCES
from tests.report_runs import ATTACK, make
from tests.tiny import bpe_tokenizer

from dgpo_cli.models.load import keep_tokenizer

pytestmark = NEEDS_CHROMIUM
WAIT_MS = 120_000  # this may be a busy machine


class Program:
    """`dgpo` with these arguments in a process of its own, in `folder`."""

    def __init__(self, folder: Path, *argv: str) -> None:
        path = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dgpo_cli", *argv],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def stop(self, by: int) -> int:
        if self.process.poll() is None:
            self.process.send_signal(by)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for run in make(folder / "runs" / "made"):
        keep_tokenizer(run, bpe_tokenizer())
    return folder


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[tuple[Program, str]]:
    program = Program(project, "report", "--watch", "--json")
    assert program.process.stdout is not None
    try:
        yield program, json.loads(program.process.stdout.readline())["url"]
    finally:
        program.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: tuple[Program, str]) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server[1])
    page.locator("#list button").first.wait_for()
    yield page
    page.close()
    assert complaints == []


def test_what_was_read_stays_text(page: Any) -> None:
    page.locator("#run-a").select_option(label="second")
    for button in page.locator("#list button").all():
        button.click()
        page.locator("#detail .step.read pre").first.wait_for()
        assert ATTACK in (page.locator("#detail").text_content() or "")
    assert page.evaluate("window.ran === undefined")
    assert page.locator("#detail img, #detail script").count() == 0


@pytest.mark.parametrize("width", [1300, 380])
def test_it_fits_its_window_in_light_and_dark(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    backgrounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert backgrounds[0] != backgrounds[1]


def test_a_damaged_run_is_told_until_it_is_whole(page: Any, project: Path) -> None:
    record = project / "runs" / "made" / "first" / "run.json"
    whole = record.read_bytes()
    record.write_bytes(b"{")
    page.locator("#warnings .note", has_text="first/run.json is damaged").wait_for()
    record.write_bytes(whole)
    page.locator("#warnings .note").wait_for(state="detached")
    assert page.locator("#run-table tbody tr").count() == 3


def test_a_run_at_work_is_followed_step_by_step(page: Any, project: Path, offline: Any) -> None:
    sizes = {"max_tokens": 200, "max_prompt_tokens": 64, "max_observation_tokens": 96, "max_new_tokens": 16,
             "max_turns": 2, "wave": 4}  # fmt: skip
    options = [part for name, value in sizes.items() for part in ("-o", f"rollout.{name}={value}")]
    run = Program(
        project, "rl", "--student", str(offline.student), "--teacher", str(offline.teacher), "--index",
        str(offline.index), "--data", str(offline.questions("train")), "--steps", "400", "--batch-size", "4",
        "-o", "keep_episodes=1", "-o", "eval_every=400", *options,
    )  # fmt: skip
    try:
        work = page.locator("#at-work p", has_text="rl-0001")
        work.filter(has_text="KL on wrong answers").wait_for()
        reached = int(work.locator("progress").get_attribute("value"))
        page.wait_for_function("(n) => Number(document.querySelector('#at-work progress').value) > n", arg=reached)
        assert work.locator("progress").get_attribute("max") == "400"
        page.locator("#run-a").select_option(label="rl-0001")
        page.locator('figure[data-metric="teacher_k1_wrong"] polyline').first.wait_for()

        newest = page.locator("#list button").first
        newest.click()
        before = page.locator("#detail .meta").text_content()
        page.wait_for_function("(text) => document.querySelector('#detail .meta').textContent !== text", arg=before)
        assert "rollouts of training" in page.locator("#detail .meta").text_content()

        page.locator("#list button").nth(2).click()  # who reads an older one keeps it
        token = page.locator("#detail .step.wrote .token").first
        token.focus()
        told = page.locator("#detail .reading").text_content()
        for name in ("advantage", "KL to the teacher", "log-probability", "reward", "probability"):
            assert name in told, told
        page.keyboard.press("ArrowRight")
        assert page.locator("#detail .reading").text_content() != told
        read, reached = page.locator("#detail .meta").text_content(), page.locator("#list button").count()
        page.wait_for_function("(n) => document.querySelectorAll('#list button').length > n", arg=reached)
        assert page.locator("#detail .meta").text_content() == read
        assert page.evaluate("document.activeElement.classList.contains('token')")
        page.locator("#detail .shade").select_option("kl")
        assert page.locator("#detail .shade").input_value() == "kl"
    finally:
        run.stop(signal.SIGINT)
    page.locator("#at-work p").wait_for(state="detached")
    page.locator("#run-table tr", has_text="rl-0001").filter(has_text="unfinished").wait_for()


def test_the_page_says_that_its_server_has_stopped(browser: Any, server: tuple[Program, str]) -> None:
    program, url = server
    page = browser.new_page()
    page.goto(url)
    page.locator("#live", has_text="following").wait_for(timeout=WAIT_MS)
    assert program.stop(signal.SIGINT) == 0
    page.locator("#live.lost", has_text="not following").wait_for(timeout=WAIT_MS)
    page.close()
