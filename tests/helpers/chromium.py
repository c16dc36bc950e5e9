"""A real browser for the tests that need one: Playwright drives an installed Chromium."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

WIDTHS = (390, 1440)
SCHEMES = ("light", "dark")


def _executable() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    executable = _executable()
    if executable is None:
        pytest.skip("no Chromium: install one (apt-get install chromium), or name it in $CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable)
        yield running
        running.close()


class Tab:
    """A page that must not say anything on its console, nor ask the network for anything but `home`."""

    def __init__(self, running: Any, home: str, *, scheme: str = "light", width: int = 1440) -> None:
        self.page = running.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.home, self.width = home, width
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._look(request.url))
        self.page.goto(home)

    def _look(self, address: str) -> None:
        if not address.startswith((self.home, "data:", "blob:")):
            self.said.append(f"asked for {address}")

    def check(self, quiet: bool = True) -> None:
        """Nothing on the console, nothing wider than the screen, and nothing that axe-core objects to."""
        if quiet:
            assert self.said == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width
        # Not wait_for_function: its polls are `eval` in the page, which the page's policy forbids.
        deadline = time.monotonic() + 60
        while not self.page.evaluate("[...document.images].every(i => !i.checkVisibility() || i.naturalWidth)"):
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(20)
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
        found = axe.Axe().run(self.page).response
        assert {"color-contrast", "label"} & {rule["id"] for rule in found["passes"]}
        assert [(rule["id"], node["html"]) for rule in found["violations"] for node in rule["nodes"]] == []

    def beyond(self) -> list[str]:
        """Elements that reach beyond the screen, but for what is inside a part that scrolls sideways by itself."""
        script = """width => {
          const scrolls = e => /auto|scroll|hidden/.test(getComputedStyle(e).overflowX);
          const inside = e => e.parentElement && (scrolls(e.parentElement) || inside(e.parentElement));
          return [...document.querySelectorAll("body *:not(.skip)")].filter(e => {
            const box = e.getBoundingClientRect();
            return box.width && box.height && (box.left < -1 || box.right > width + 1) && !inside(e);
          }).map(e => e.outerHTML.slice(0, 80));
        }"""
        return self.page.evaluate(script, self.width)

    def focus(self, selector: str) -> None:
        """Goes to an element as a keyboard does, by Tab alone."""
        target = self.page.locator(selector).first
        for _ in range(200):
            self.page.keyboard.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{selector} cannot be reached with the keyboard")
