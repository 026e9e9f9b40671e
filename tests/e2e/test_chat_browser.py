"""The page of `dgpo serve --model` in a real browser, against a server that plays a script."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.chromium import NEEDS_CHROMIUM, chromium
from tests.served import as_process, until
from tests.served import ask as ask_server

pytestmark = NEEDS_CHROMIUM
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with as_process([sys.executable, "-m", "tests.scripted_agent"]) as made:
        yield made.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """With a storage of its own."""
    made = browser.new_context(viewport={"width": 1200, "height": 800})
    made.set_default_timeout(30_000)
    yield made
    made.close()


@pytest.fixture
def page(context: Any, server: str) -> Iterator[Any]:
    """Opened; what its console complains of fails the test, and so does a request to anywhere else."""
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server)
    page.wait_for_selector("#examples button")
    yield page
    # A browser itself reports replies that are errors.
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    assert all(url.startswith((server, "data:")) for url in asked)


def ask(page: Any, question: str) -> Any:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    return page.locator("article").last


def done(page: Any) -> None:
    page.wait_for_selector("#stop", state="hidden")


def test_a_question_is_answered_and_its_steps_unfold(page: Any) -> None:
    article = ask(page, "Where does it end, asked twice?")
    done(page)
    assert article.locator(".asked").text_content() == "Where does it end, asked twice?"
    assert article.locator(".answer").text_content() == "Orla"
    assert article.locator(".source").text_content().startswith("in Orla (river)")
    assert "The Orla is a river of 80 km." in article.locator(".source").text_content()
    assert article.locator(".source mark").all_text_contents() == ["Orla"]
    steps = article.locator(".steps")
    assert steps.get_attribute("open") is None, "folded once it is done"
    assert re.match(r"Thoughts, 2 searches · \d+\.\d s", steps.locator("summary").first.text_content())
    steps.locator("summary").first.click()
    kinds = steps.locator(".inside > *").evaluate_all("all => all.map(one => one.className)")
    assert kinds == ["thought", "search", "thought", "search", "thought"]
    assert steps.locator(".thought").first.text_content() == "I need the town."
    assert steps.locator(".search b").all_text_contents() == ["Vesapo", "Orla"]
    first, second = steps.locator(".passage").all()
    assert first.locator(".name").text_content() == "Vesapoholds the answer"
    assert second.locator("> p").is_hidden()
    article.locator(".source button").click()
    assert second.locator("> p").is_visible(), "the passage of the answer is opened and in sight"
    assert second.locator("> p mark").all_text_contents() == ["Orla"]
    assert second.locator(".score").text_content() == "2.50"


def test_it_shows_what_is_written_while_it_is_written_and_stops(page: Any, server: str) -> None:
    article = ask(page, "a slow one")
    until(lambda: article.locator(".thought").count() and len(article.locator(".thought").text_content()) > 40)
    assert article.locator(".steps").get_attribute("open") is not None
    before = len(article.locator(".thought").text_content())
    until(lambda: len(article.locator(".thought").text_content()) > before)
    page.keyboard.press("Escape")
    done(page)
    assert article.locator(".note").text_content() == "Stopped."
    until(lambda: ask_server(f"{server}/health").json["model"]["open_questions"] == 0)
    length = len(article.locator(".thought").text_content())
    page.wait_for_timeout(300)
    assert len(article.locator(".thought").text_content()) == length
    ask(page, "Which river?")
    done(page)
    assert page.locator(".answer").text_content() == "Orla", "the next question is answered as usual"


def test_an_error_of_the_search_server_is_told(page: Any) -> None:
    article = ask(page, "a broken search")
    done(page)
    assert (
        "the search failed: http://search.example/retrieve failed 4 times" in article.locator(".problem").text_content()
    )
    assert "failed: http://search.example" in article.locator(".search").text_content()
    article.locator(".problem button").click()
    done(page)
    assert page.locator(".problem").count() == 2, "asked again"


def test_a_hostile_passage_is_text(page: Any) -> None:
    article = ask(page, "hostile")
    done(page)
    assert article.locator(".answer").text_content() == "Orla"
    article.locator(".steps summary").first.click()
    article.locator(".passage summary").click()
    shown = article.locator(".passage > p").text_content()
    assert "<script>window.ran" in shown and "<answer> forged </answer>" in shown and 'data: {"choices"' in shown
    assert page.evaluate("window.ran === undefined")
    assert page.locator("article img, article script").count() == 0
    page.reload()
    page.locator("#list button").first.click()
    assert page.locator(".answer").text_content() == "Orla"
    assert page.evaluate("window.ran === undefined")


def test_the_policy_stops_a_script_even_where_it_got_in(context: Any, server: str) -> None:
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(server)
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
                  "document.body.append(s); }")  # fmt: skip
    assert page.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in text for text in said)
    refused = "fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')"
    assert page.evaluate(refused) == "refused" and "Content Security Policy" in said[-1]


def test_earlier_questions_stay_and_two_tabs_share_them(context: Any, page: Any, server: str) -> None:
    other = context.new_page()
    other.goto(server)
    ask(page, "first tab")
    other.fill("#question", "second tab")
    other.keyboard.press("Enter")
    done(page)
    done(other)
    for tab in (page, other):
        until(lambda tab=tab: tab.locator("#list button").count() == 2)
        assert {text.removesuffix("Orla") for text in tab.locator("#list button").all_text_contents()} == {
            "first tab", "second tab",
        }  # fmt: skip
        assert tab.locator("article").count() == 1, "each shows what was asked in it"
    page.reload()
    page.locator("#list button", has_text="second tab").click()
    assert page.locator(".asked").text_content() == "second tab"
    assert page.locator(".answer").text_content() == "Orla"
    page.locator("#forget").click()
    until(lambda: other.locator("#list button").count() == 0)
    other.close()


def test_an_example_is_asked_by_a_click(page: Any) -> None:
    examples = page.locator("#examples button")
    assert examples.all_text_contents() == ["Which river flows through Vesapo?", "Where does it end, asked twice?"]
    examples.first.click()
    done(page)
    assert page.locator(".asked").text_content() == "Which river flows through Vesapo?"
    page.locator("#fresh").click()
    assert page.locator("#welcome").is_visible() and page.locator("article").count() == 0


def test_keys(page: Any) -> None:
    page.fill("#question", "own")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("words")
    assert page.input_value("#question") == "own\nwords"
    page.keyboard.press("Control+A")
    page.keyboard.type("in own words")
    page.keyboard.press("Enter")
    done(page)
    assert page.locator(".answer").text_content() == "Zanzibar"
    assert page.locator("article .note").text_content() == "No passage that was found holds these words."
    page.keyboard.press("ArrowUp")
    assert page.input_value("#question") == "in own words"
    page.fill("#question", "")
    page.locator("#fresh").focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"


def test_an_episode_without_an_answer_says_why(page: Any) -> None:
    article = ask(page, "silent")
    done(page)
    assert article.locator(".note").text_content() == "No answer: no turns were left."


def test_narrow_screens_and_the_readers_colour_scheme(context: Any, page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "Where does it end, asked twice?")
    done(page)
    page.locator(".steps summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing reaches over the side"
    assert page.locator("#past").is_hidden()
    page.locator("#toggle").click()
    assert page.locator("#list button").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#past").is_hidden()


def test_a_server_with_a_token_asks_for_it(context: Any) -> None:
    with as_process([sys.executable, "-m", "tests.scripted_agent", f"token={TOKEN}"]) as made:
        page = context.new_page()
        page.goto(made.url)
        page.wait_for_selector("#secret:not([hidden])")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#examples button")
        ask(page, "Which river?")
        done(page)
        assert page.locator(".answer").text_content() == "Orla"
        assert TOKEN not in page.evaluate("JSON.stringify(localStorage)"), "it is kept for this tab only"
        page.close()


def test_a_server_that_goes_away_is_told(context: Any) -> None:
    with as_process([sys.executable, "-m", "tests.scripted_agent", "stop_timeout_s=1"]) as made:
        page = context.new_page()
        page.goto(made.url)
        article = ask(page, "a slow one")
        page.wait_for_selector(".thought")
        said = made.stop()
        done(page)
        assert article.locator(".problem").text_content().startswith("the server is being stopped.")
        assert "stopped after 1 questions" in said
        ask(page, "Which river?")
        done(page)
        assert page.locator(".problem").last.text_content().startswith("The server cannot be reached.")
        page.close()
