"""The page's "why" in Chromium for each thing that can be in a job's way, the story of a lost job, who ended a machine,
wait targets, predictions and error budgets; on desktop and phone."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.e2e.status_site import SIZES, Site, chromium, served
from tests.e2e.why_site import Cause, WhySite

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def why() -> WhySite:
    return await WhySite().opened()


@pytest_asyncio.fixture(loop_scope="module")
async def site(browser: Browser, why: WhySite) -> AsyncIterator[Site]:
    async with served(why.view, browser) as one:
        yield one


async def follow(page: Page, address: str) -> None:
    """As a link does: the same page, another job."""
    await page.evaluate("(to) => { location.hash = to; }", address)


async def says_why(page: Page, name: str, cause: Cause) -> None:
    dialog = page.get_by_role("dialog")
    await follow(page, f"#job={quote(cause.job.id, safe='')}")
    await expect(dialog.get_by_role("heading", name=cause.job.name)).to_be_visible()
    for words in cause.says:
        await expect(dialog.locator(".verdict"), name).to_contain_text(words)
    if cause.starts:
        await expect(page.locator("#detail-starts"), name).to_contain_text(cause.starts)
    if cause.advice:
        await expect(page.locator("#detail-advice"), name).to_contain_text(cause.advice)
    else:
        await expect(page.locator("#detail-advice"), name).to_be_hidden()


async def test_the_page_says_why_for_each_cause_when_it_starts_and_what_to_do(site: Site, why: WhySite) -> None:
    page = await site.signed_in()
    row = page.locator("#waiting .row", has_text="waits for spilled")
    await expect(row).to_contain_text("Starts in about")
    for name, cause in why.causes.items():
        await says_why(page, name, cause)


async def test_a_phone_shows_the_longest_answers_without_scrolling_sideways(site: Site, why: WhySite) -> None:
    page = await site.signed_in("phone")
    for name in ("label", "boots", "spilled"):
        await says_why(page, name, why.causes[name])
        assert await page.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
async def test_targets_predictions_and_error_budgets_are_shown_without_scrolling_sideways(
    site: Site, size: str, scheme: str, tmp_path: Path
) -> None:
    page = await site.signed_in(size, scheme)
    linux = page.locator("#waits tr", has_text="linux")
    await expect(linux).to_contain_text("95 % within 1 min")
    await expect(linux).to_contain_text("cannot be met by booting: its machines take longer (95 % of them within 1")
    await expect(linux).to_contain_text("% in time")
    await expect(linux).to_contain_text("31 % likely to be late")
    await expect(page.locator("#waits tr", has_text="gpu")).to_contain_text("1 job waits: pool gpu is at its max of 1")
    await expect(page.locator("#waits tr", has_text="spilled")).to_contain_text(
        "because predicted breach 0.83 on spot, 0.21 on demand, target 60 s."
    )
    await expect(page.locator("#predictions-plot circle")).to_have_count(10)
    await expect(page.locator("#predictions-note")).to_contain_text("11,220 jobs of the last 7 days")
    await expect(page.locator("#predictions-note")).to_contain_text("at most 3 points")
    await page.locator("#predictions-pool").select_option("linux")
    await expect(page.locator("#predictions tr")).to_have_count(10)
    budget = page.locator("#budget li.burn", has_text="linux")
    await expect(budget).to_contain_text("burns 2.4 times what is allowed")
    await expect(budget).to_contain_text("Only 50 % of its new machines are spot")
    await expect(budget).to_contain_text("spot share 50 %: interruptions hurt 11 %")
    assert await page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    await page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)


async def test_a_lost_jobs_page_tells_the_story_of_all_attempts_and_leads_to_each(site: Site, why: WhySite) -> None:
    page = await site.signed_in(at=f"#job={quote(why.lost.id, safe='')}")
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator(".verdict")).to_contain_text("aws took its machine i-0014 back after a notice")
    await expect(dialog.locator(".verdict")).to_contain_text("which is no failure of the job")
    lines = dialog.locator(".timeline li")
    await expect(lines.filter(has_text="#1 · aws announced that it takes machine i-0014")).to_have_count(1)
    await expect(lines.filter(has_text="#1 · People were told")).to_have_count(1)
    await expect(lines.filter(has_text="#2 · Queued again, attempt 2 at github")).to_have_count(1)
    await dialog.get_by_role("link", name="Attempt 2: running").click()
    await expect(dialog.locator(".verdict")).to_contain_text("It has been running")
    await expect(lines.filter(has_text="#1 · People were told")).to_have_count(1)


async def test_a_machines_page_names_who_ended_it_and_the_evidence(site: Site) -> None:
    page = await site.signed_in("phone", at="#machine=i-0014")
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator(".verdict")).to_contain_text("aws took it back")
    await expect(dialog.locator(".verdict")).to_contain_text("after a notice 2 min ahead")
    await expect(page.locator("#detail-evidence li")).to_have_count(2)
    await expect(page.locator("#detail-evidence li").first).to_contain_text("agent")
    assert await page.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]
