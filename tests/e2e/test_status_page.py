"""The status page in Chromium: login, live updates, a job's and a machine's story, on a desktop and on a phone."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from autoscaler.http.admin import make_admin_app
from autoscaler.metrics import Metrics
from autoscaler.model import InstanceState
from autoscaler.spi import Secret
from tests.admin_world import LINUX, ExampleView, busy_view, job

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
TOKEN = "an-operators-token"


@dataclass
class Site:
    """The admin application on a free port, and a browser."""

    view: ExampleView
    url: str
    browser: Browser

    async def page(self, size: str = "desktop", scheme: str = "light") -> Page:
        width, height = SIZES[size]
        dark = "dark" if scheme == "dark" else "light"
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark == "dark" else "light"
        )
        page = await context.new_page()
        page.on("console", lambda message: self._no_errors(message.type, message.text))
        page.on("pageerror", lambda error: self._no_errors("error", str(error)))
        return page

    errors: tuple[str, ...] = ()

    def _no_errors(self, kind: str, text: str) -> None:
        if kind == "error" and "401" not in text:
            self.errors = (*self.errors, text)

    async def signed_in(self, size: str = "desktop", scheme: str = "light") -> Page:
        page = await self.page(size, scheme)
        await page.goto(self.url, wait_until="domcontentloaded")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("#link")).to_have_text("Live")
        return page


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing, and CI must test the page")
        pytest.skip(f"{CHROMIUM} is not installed")
    view = await busy_view()
    runner = web.AppRunner(make_admin_app(view, Metrics(), (Secret(TOKEN),)), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        one = Site(view, f"http://127.0.0.1:{runner.addresses[0][1]}/", browser)
        yield one
        await browser.close()
    await runner.cleanup()
    assert one.errors == ()


async def test_a_wrong_token_is_told_and_the_right_one_signs_in_and_out(site: Site) -> None:
    page = await site.page()
    await page.goto(site.url, wait_until="domcontentloaded")
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_have_text("That token is not known here.")
    await page.get_by_label("Token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#deployment")).to_have_text("acme-ci")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Token")).to_be_visible()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_shows_all_at_a_glance_without_scrolling_sideways(
    site: Site, size: str, scheme: str, tmp_path: Path
) -> None:
    page = await site.signed_in(size, scheme)
    await expect(page.locator("#n-waiting")).to_have_text("17")
    await expect(page.locator("#n-running")).to_have_text("11")
    await expect(page.locator("#health")).to_contain_text("make a new one")
    await expect(page.locator("#pools")).to_contain_text("3 jobs get no machine: pool gpu has its max of 1 machine.")
    await expect(page.locator("#unserved")).to_contain_text("lacks arm64")
    await expect(page.locator("#happenings")).to_contain_text("refused: no capacity")
    await expect(page.locator("#plot-wait path.line.wait")).not_to_have_count(0)
    assert await page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    shot = await page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    assert shot.startswith(b"\x89PNG")


async def test_a_new_job_appears_by_itself(site: Site) -> None:
    page = await site.signed_in()
    snapshot = site.view.snapshot()
    fresh = replace(job(9001, site.view.now()), name="just queued", pool=None, labels=("riscv",))
    site.view.publish(replace(snapshot, jobs={**snapshot.jobs, fresh.id: fresh}))
    await expect(page.locator("#unserved")).to_contain_text("just queued")
    await expect(page.locator("#n-unserved")).to_have_text("3")


async def test_a_machines_square_follows_its_state_and_keeps_the_focus(site: Site) -> None:
    page = await site.signed_in()
    square = page.get_by_role("link", name="i-002b: launched")
    await square.focus()
    snapshot = site.view.snapshot()
    row = next(row for row in snapshot.instances.values() if row.id == "i-002b")
    ready = replace(row, state=InstanceState.READY, since=site.view.now(), version=row.version + 1)
    site.view.publish(replace(snapshot, instances={**snapshot.instances, row.id: ready}))
    await expect(page.get_by_role("link", name="i-002b: ready")).to_be_focused()


@pytest.mark.parametrize("size", SIZES)
async def test_a_waiting_job_tells_why_and_its_timeline_by_keyboard(site: Site, size: str) -> None:
    page = await site.signed_in(size)
    row = page.locator("#waiting .row", has_text="train").first
    await row.focus()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator(".verdict")).to_have_text("Pool gpu has its max of 1 machine.")
    await expect(dialog.locator(".timeline")).to_contain_text("Queued at github")
    await page.keyboard.press("Escape")
    await expect(dialog).not_to_be_visible()
    await expect(row).to_be_focused()


@pytest.mark.parametrize("size", SIZES)
async def test_a_running_job_leads_to_its_machine_and_its_history(site: Site, size: str) -> None:
    page = await site.signed_in(size)
    await page.locator("#running .row").first.click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("link", name="i-000a").click()
    await expect(dialog.get_by_role("heading", name="i-000a")).to_be_visible()
    await expect(dialog.locator(".timeline")).to_contain_text("Ready: its agent said hello")
    await expect(dialog.locator("#detail-facts")).to_contain_text("Cost so far$0.00")
    await expect(dialog.locator("#detail-facts")).to_contain_text("build (10) of acme/shop")


async def test_a_square_opens_the_machine(site: Site) -> None:
    page = await site.signed_in()
    await page.get_by_role("link", name="i-0000: busy").click()
    await expect(page.get_by_role("dialog").locator(".verdict")).to_contain_text("It has been busy for")


async def test_many_unserved_jobs_open_and_close(site: Site) -> None:
    page = await site.signed_in()
    lost = [job(9100 + number, site.view.now(), pool=None, labels=("riscv",)) for number in range(5)]
    snapshot = site.view.snapshot()
    site.view.publish(replace(snapshot, jobs={**snapshot.jobs, **{one.id: one for one in lost}}))
    await page.get_by_role("button", name="Show 4 more").click()
    await expect(page.locator("#unserved > li")).to_have_count(7)
    await page.get_by_role("button", name="Show fewer").click()
    await expect(page.locator("#unserved > li")).to_have_count(3)


async def test_what_a_forge_says_is_text_and_never_markup(site: Site) -> None:
    page = await site.signed_in()
    await expect(page.locator("#unserved")).to_contain_text("<img src=x onerror=")
    assert await page.locator("#unserved img").count() == 0
    assert "owned" not in await page.title()


async def test_a_pool_is_paused_and_resumed_from_the_page(site: Site) -> None:
    page = await site.signed_in()
    page.on("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Pause pool linux").click()
    await page.get_by_role("button", name="Resume pool linux").click()
    await expect(page.get_by_role("button", name="Pause pool linux")).to_be_visible()
    assert [(pool, control.value) for pool, control, _ in site.view.controlled] == [
        (LINUX, "paused"),
        (LINUX, "active"),
    ]
    assert site.view.controlled[0][2] == "operator with token 1, by the page"
