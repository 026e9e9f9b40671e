"""`dgpo report` in a real browser, opened from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chromium import NEEDS_CHROMIUM, chromium
from tests.report_runs import ATTACK, make

from dgpo_cli.viewing.report import write_report

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The page, what its console complained of, and what it asked the network for."""
    folder = tmp_path_factory.mktemp("browser")
    write_report(make(folder), folder / "report.html", questions=100)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(folder / "report.html").as_uri())
        yield page, complaints, requests


@pytest.fixture
def page(opened: tuple[Any, list[str], list[str]]) -> Iterator[Any]:
    page, complaints, _ = opened
    page.reload()
    yield page
    assert complaints == []


def shown(page: Any) -> list[str]:
    """Questions in the list, by number."""
    return [text.split()[2] for text in page.locator("#list li button > span:last-child").all_text_contents()]


def test_filters_choose_the_questions(page: Any) -> None:
    assert sorted(shown(page)) == list("012345")
    expected = {
        "right": "012",
        "wrong": "345",
        "differ": "123",
        "only-a": "12",
        "only-b": "3",
        "both": "0",
        "neither": "45",
    }
    for outcome, numbers in expected.items():
        page.select_option("#outcome", outcome)
        assert sorted(shown(page)) == list(numbers), outcome
        assert page.locator("#count").text_content() == f"{len(numbers)} of 6"
    page.select_option("#outcome", "all")
    page.select_option("#run-a", "1")
    page.select_option("#run-b", "")
    assert page.locator("#outcome option").all_text_contents() == ["right or wrong", "A right", "A wrong"]
    page.select_option("#outcome", "right")
    assert sorted(shown(page)) == ["0", "3"]
    page.select_option("#outcome", "all")
    page.fill("#search", "NUMBER 4")
    assert shown(page) == ["4"]
    page.fill("#search", "in no episode")
    assert page.locator("#list").text_content() == "No episode matches these filters."


def test_a_trajectory_is_read_step_by_step(page: Any) -> None:
    page.locator("#list button", has_text="Question number 3").click()
    first = page.locator('#detail .attempt[data-run="0"]')
    second = page.locator('#detail .attempt[data-run="1"]')
    assert (first.locator(".badge").text_content(), second.locator(".badge").text_content()) == ("wrong", "right")
    labels = [text.split(" · ")[0] for text in second.locator(".step > .label").all_text_contents()]
    assert labels == ["prompt", "model searches", "results", "model", "correction", "model answers"]
    written = second.locator(".step.wrote pre")
    assert written.first.text_content() == "<think>hm</think><search>where is it</search>"
    assert written.last.text_content() == "<answer>Lyon</answer>"
    shade = "getComputedStyle(document.querySelector('.step.{} pre')).backgroundColor"
    assert page.evaluate(shade.format("wrote")) != page.evaluate(shade.format("read"))
    assert second.locator(".hits .title").text_content() == f"Lyon {ATTACK}gold passageholds the answer"
    assert second.locator(".hits .score").text_content() == "1.250"


def test_keys_go_to_the_next_and_the_previous_question(page: Any) -> None:
    current = page.locator('#list [aria-current="true"]')
    before = current.text_content()
    page.keyboard.press("j")
    assert current.text_content() != before
    page.keyboard.press("k")
    assert current.text_content() == before
    page.keyboard.press("/")
    page.keyboard.type("jk")  # into the search box, where they are letters
    assert page.input_value("#search") == "jk"


def test_what_was_read_did_not_run_and_nothing_was_fetched(opened: tuple[Any, list[str], list[str]], page: Any) -> None:
    for button in page.locator("#list button").all():
        button.click()
        assert ATTACK in (page.locator("#detail").text_content() or "")
    assert page.evaluate("window.ran === undefined")
    assert page.locator("#detail img, #detail script").count() == 0
    assert {url.partition(":")[0] for url in opened[2]} == {"file"}


def test_the_policy_stops_a_script_even_where_it_got_in(opened: tuple[Any, list[str], list[str]], page: Any) -> None:
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
                  "document.body.append(s); }")  # fmt: skip
    assert page.evaluate("window.ran === undefined")
    assert "Content Security Policy" in opened[1].pop()


def test_a_run_is_hidden_in_the_curves(page: Any) -> None:
    curve = page.locator('figure[data-metric="reward"] g[data-run="2"]')
    assert curve.locator("polyline").count() == 2  # each step, and the running mean
    page.locator('figure[data-metric="reward"] svg').hover()
    assert page.locator('figure[data-metric="reward"] output').text_content() == "0.4667 at 14"
    page.locator("#curve-legend button").click()
    assert curve.count() == 0
    page.locator("#curve-legend button").click()
    assert curve.count() == 1


def test_it_follows_the_readers_colour_scheme(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.emulate_media(color_scheme="light")
