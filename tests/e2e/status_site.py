"""The admin application on a free port and a Chromium for it: what the tests of the status page stand on."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from autoscaler.http.admin import make_admin_app
from autoscaler.metrics import Metrics
from autoscaler.spi import Secret
from tests.admin_world import ExampleView

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
TOKEN = "an-operators-token"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Fails in CI, and skips elsewhere, where there is none."""
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing, and CI must test the page")
        pytest.skip(f"{CHROMIUM} is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@dataclass
class Site:
    """One served view. `stop` and `start` are a daemon that dies and one that comes back at the same address."""

    view: ExampleView
    browser: Browser
    tokens: tuple[Secret, ...] = (Secret(TOKEN),)
    port: int = 0
    errors: tuple[str, ...] = ()
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        runner = web.AppRunner(make_admin_app(self.view, Metrics(), self.tokens), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = int(runner.addresses[0][1])
        self._runner = runner

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def page(self, size: str = "desktop", scheme: str = "light") -> Page:
        width, height = SIZES[size]
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
        )
        page = await context.new_page()
        page.on("console", lambda message: self._no_errors(message.type, message.text))
        page.on("pageerror", lambda error: self._no_errors("error", str(error)))
        return page

    def _no_errors(self, kind: str, text: str) -> None:
        expected = ("401", "net::ERR_CONNECTION_REFUSED", "net::ERR_INCOMPLETE_CHUNKED_ENCODING")
        if kind == "error" and not any(one in text for one in expected):
            self.errors = (*self.errors, text)

    async def signed_in(self, size: str = "desktop", scheme: str = "light", *, at: str = "") -> Page:
        page = await self.page(size, scheme)
        if self.tokens:
            origin = {"Origin": self.url.removesuffix("/")}
            await page.context.request.post(f"{self.url}login", form={"token": TOKEN}, headers=origin)
        await page.goto(self.url + at, wait_until="domcontentloaded")
        await expect(page.locator("#link")).to_have_text("Live")
        return page


@asynccontextmanager
async def served(
    view: ExampleView, browser: Browser, *, tokens: tuple[Secret, ...] = (Secret(TOKEN),)
) -> AsyncIterator[Site]:
    """A site, and no error on any of its pages."""
    site = Site(view, browser, tokens)
    await site.start()
    try:
        yield site
    finally:
        for context in list(browser.contexts):
            await context.close()
        await site.stop()
    assert site.errors == ()
