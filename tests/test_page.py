"""The page in a real browser: chat, stop, plan, roofline, themes, widths, keyboard; pictures for the documentation."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from commands import penjing, started

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PICTURES = os.environ.get("PENJING_PICTURES")  # a folder: `make page` writes the documentation's there


@pytest.fixture(scope="module")
def served(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The model that ships, for two users."""
    cache = tmp_path_factory.mktemp("page") / "cache"
    shutil.copytree(measured, cache)
    words = ("serve", "--port", "0", "--users", "2", "--context", "1024", "--json")
    with started(*words, env={"PENJING_CACHE": str(cache)}) as command:
        yield command.document()
        command.process.send_signal(signal.SIGINT)
        assert command.finish(40).code == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, served: dict[str, Any]) -> Iterator[Page]:
    """The page, loaded; nothing may go wrong in its scripts, and nothing may be asked of the outside."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, faults, asked = context.new_page(), [], []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(served["page"])
    expect(opened.locator("#engine")).to_have_text("engine up")
    yield opened
    assert faults == []
    assert all(url.startswith(served["page"]) for url in asked)
    context.close()


def shown(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_a_chat_streams(page: Page):
    """Enter sends; the answer grows piece by piece; what it took stands under it, beside what was predicted."""
    page.fill("#most", "60")
    page.fill("#ask", "Name three rivers of Europe.")
    page.press("#ask", "Enter")
    said = page.locator("#talk .assistant p").first
    expect(said).not_to_be_empty(timeout=20_000)
    early = said.inner_text()
    expect(page.locator("#talk .assistant .said")).to_contain_text("tok/s", timeout=60_000)

    assert len(said.inner_text()) > len(early)
    assert "predicted" in page.locator("#talk .assistant .said").inner_text()
    expect(page.locator("#requests")).not_to_have_text("0")
    shown(page, "page")


def without_an_end(route: Route) -> None:
    """The model may not end its answer by itself (`<|im_end|>`), so that there is time to stop it."""
    asked = json.loads(route.request.post_data or "{}")
    route.continue_(post_data=json.dumps({**asked, "logit_bias": {"2": -100}}))


def test_an_answer_can_be_stopped(page: Page):
    """Escape and the button end it; the server lets go of it."""
    page.route("**/chat/completions", without_an_end)
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        page.fill("#most", "900")
        page.fill("#ask", "Count from one to a thousand in words.")
        page.click("#send")
        expect(page.locator("#talk .assistant p").last).not_to_be_empty(timeout=20_000)
        stop()
        expect(page.locator("#talk .assistant .said").last).to_have_text("stopped")
        expect(page.locator("#in-flight")).to_have_text("0 of 2", timeout=10_000)


def test_the_plan_is_drawn_from_the_live_document(page: Page, served: dict[str, Any]):
    """Every figure on the page is the one of the plan that serves."""
    state = page.evaluate("fetch('/state.json').then((reply) => reply.json())")
    chosen = served["plan"]["chosen"]

    assert state["plan"]["estimate"] == chosen["estimate"]
    expect(page.locator("#model")).to_have_text(served["model"])
    expect(page.locator("#why")).to_contain_text(chosen["why"])
    assert page.locator("#types rect").count() == len(state["types"]["cells"]) > 100
    assert page.locator("#roofline circle").count() == len(state["points"]) == 2
    assert page.locator("#frontier circle").count() == len(served["plan"]["frontier"]) + 1
    assert page.locator("#memory rect").count() >= 3
    assert page.locator("#refused tr").count() == len(served["plan"]["refused"]) + 1
    hovered = page.locator("#types rect title").first.text_content()
    assert hovered and "bits" in hovered


def test_load_is_drawn(page: Page):
    """Charts hold a line after some looks, with the predicted band."""
    expect(page.locator("#queue-chart path")).to_have_attribute("d", re.compile("L"), timeout=10_000)

    assert page.locator("#first-chart .band").count() == 1


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_width_and_theme_is_readable(page: Page, width: int, theme: str):
    """Nothing sticks out at the side, and text stands out from its ground."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.wait_for_timeout(1500)  # the charts of the load are drawn once a second
    assert page.evaluate(
        """[...document.querySelectorAll('figure > div:not(.scroll) > svg')].every((svg) =>
          svg.getBoundingClientRect().width / svg.viewBox.baseVal.width > 0.9)"""
    ), "words in pictures keep their size"
    for where in ("body", ".hint", "th", "#engine"):
        assert contrast(page, where) >= 4.5, where
    shown(page, f"page-{width}-{theme}")


def contrast(page: Page, where: str) -> float:
    """Of the text of an element to its ground, by WCAG 2."""
    found = page.evaluate(
        """(where) => {
          const node = document.querySelector(where);
          const none = 'rgba(0, 0, 0, 0)', colour = (one) => getComputedStyle(one).backgroundColor;
          let ground = node;
          while (colour(ground) === none && ground.parentElement) ground = ground.parentElement;
          return [getComputedStyle(node).color, colour(ground)];
        }""",
        where,
    )
    light = sorted((_luminance(colour) for colour in found), reverse=True)
    return (light[0] + 0.05) / (light[1] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_it_can_be_used_without_a_mouse(page: Page):
    """Tab reaches the chat in a few steps, each control has a name, and pictures say what they show."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the chat"
    page.keyboard.press("Enter")
    page.keyboard.type("Hi")
    assert page.input_value("#ask") == "Hi"
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea')]
          .filter((node) => !node.labels?.length && !node.textContent.trim()).map((node) => node.id)"""
    )
    assert unnamed == []
    assert page.evaluate(
        "[...document.querySelectorAll('svg')].every((node) => node.getAttribute('aria-label'))"
    )


def test_a_key_is_asked_for(browser: Browser, known: Path, tiny: Path, tmp_path: Path):
    """A server with keys shows its page, and nothing else, until the key is given."""
    where = ("--keys", str(tmp_path / "keys.json"))
    secret = penjing("keys", "add", "alice", *where).stdout.strip()
    with started("serve", str(tiny), "--port", "0", *where, "--json") as command:
        opened = browser.new_page()
        opened.goto(command.document()["page"])
        expect(opened.locator("#key-dialog")).to_be_visible()
        for wrong, why in (("schlüssel", "ASCII"), ("wrong", "not known here")):
            opened.fill("#key", wrong)
            opened.press("#key", "Enter")
            expect(opened.locator("#key-hint")).to_contain_text(why)
            expect(opened.locator("#key-dialog")).to_be_visible()
        opened.fill("#key", secret)
        opened.press("#key", "Enter")
        expect(opened.locator("#engine")).to_have_text("engine up")
        expect(opened.locator("#model")).to_have_text("random-tiny-Q4_0")
        opened.close()
