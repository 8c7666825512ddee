"""A headless browser for the tests of pages: the Chromium that the system has, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def started() -> Iterator[Any]:
    """Yield the browser; skip the test, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a browser: one of {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, viewport: dict[str, int] = DESKTOP, **settings: Any) -> Iterator[Any]:
    """Yield the page of a file once its script has drawn it; fail if it logs an error or asks for anything else."""
    context = browser.new_context(viewport=viewport, offline=True, **settings)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None,
    )
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=yes]", state="attached", timeout=30_000)
    yield page
    context.close()
    assert not wrong, wrong[:3]
