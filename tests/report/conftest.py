"""A headless Chromium for the tests of the pages; without one they are skipped, or fail under CAI_REQUIRE_BROWSER=1."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_BROWSER


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # enough on a busy machine

    with sync_playwright() as playwright:
        installed = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
        program = next(filter(None, installed), None) or playwright.chromium.executable_path
        if not Path(program).exists():
            unavailable = pytest.fail if os.environ.get("CAI_REQUIRE_BROWSER") else pytest.skip
            unavailable(f"{NO_BROWSER}: `make browser` installs one")
        # root, as in a container, has no sandbox; these tests write the pages
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page of the browser, which records errors and requests."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **settings})
        self.page.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> Any:
        self.page.goto("about:blank")  # a new hash alone would load nothing
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready=yes]")
        return self.page

    @property
    def address(self) -> str:
        """The address that the page itself knows; `page.url` is a copy, which follows by an event of its own."""
        return str(self.page.evaluate("location.href"))
