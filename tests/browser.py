"""A headless browser that may reach nothing but the page it was given."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

_NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_COUNT = """async (data) => {
  const image = new Image();
  image.src = "data:image/png;base64," + data;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(
    context.getImageData(0, 0, image.width, image.height).data.buffer);
  return new Set(pixels).size;
}"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The browser that is installed; without one the test fails."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.fail(
            f"none of {', '.join(_NAMES)} is installed; install one, or leave these tests out with "
            "-m 'not browser'"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_OPTIONS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, what its console said, and what it asked for beside itself."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def open_page(
    browser: Browser,
    path: Path | str,
    *,
    scheme: str = "light",
    width: int = 1280,
    drawn: bool = True,
) -> Opened:
    """Open a file, or the address of a server; requests to elsewhere are refused and noted."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    opened = Opened(context.new_page())
    page = opened.page
    own = path if isinstance(path, str) else path.resolve().as_uri()

    def route(request: Route) -> None:
        url = request.request.url
        if url.partition("#")[0] == own or (isinstance(path, str) and url.startswith(own)):
            request.continue_()
        else:
            opened.asked.append(url)
            request.abort()

    context.route("**/*", route)
    page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
    page.goto(own)
    if drawn:
        page.locator("html[data-drawn]").wait_for(state="attached", timeout=60_000)
    return opened


def colours(place: Locator) -> int:
    """Distinct colours of what an element shows, by its pixels."""
    return int(place.page.evaluate(_COUNT, base64.b64encode(place.screenshot()).decode()))


def faults(page: Page, *impacts: str) -> list[tuple[str, str, list[str]]]:
    """What axe has against a page, of these impacts: rules, impacts and the first elements."""
    # Elements that keep the rules are not listed, which takes most of the time.
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        (fault["id"], fault["impact"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in found
        if not impacts or fault["impact"] in impacts
    ]
