"""The status page in Chromium: login, live updates, a job's and a machine's story, on a desktop and on a phone."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from autoscaler.model import InstanceState, Use
from autoscaler.store import Changes
from tests.admin_world import LINUX, ExampleView, busy_view, job, pool, rules_of, snapshot_of
from tests.contract.store_builders import a_cost
from tests.e2e.status_site import SIZES, TOKEN, Site, chromium, served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def site(browser: Browser) -> AsyncIterator[Site]:
    async with served(await busy_view(), browser) as one:
        yield one


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


async def test_a_token_after_the_address_signs_in_and_reaches_no_server_in_an_address(site: Site) -> None:
    page = await site.page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("#")[0] + request.headers.get("referer", "")))

    await page.goto(f"{site.url}login#token={TOKEN}", wait_until="domcontentloaded")

    await expect(page.locator("#link")).to_have_text("Live")
    assert TOKEN not in page.url
    assert asked
    assert not [one for one in asked if TOKEN in one]


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
    await expect(dialog.locator(".timeline")).to_contain_text("Is ready: its agent said hello")
    await expect(dialog.locator("#detail-facts")).to_contain_text("Cost so far$0.00")
    await expect(dialog.locator("#detail-facts")).to_contain_text("build (10) of acme/shop")


async def test_a_square_opens_the_machine(site: Site) -> None:
    page = await site.signed_in()
    await page.get_by_role("link", name="i-0000: busy").click()
    await expect(page.get_by_role("dialog").locator(".verdict")).to_contain_text(
        "It runs a job: build (0) of acme/shop"
    )


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


JOB_ADDRESS = "#job=github%3A9801"


async def test_an_address_of_a_job_survives_the_login_and_a_reload(site: Site) -> None:
    page = await site.page()
    await page.goto(site.url + JOB_ADDRESS, wait_until="domcontentloaded")
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Sign in").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("heading", name="train (fp16)")).to_be_visible()
    await page.reload(wait_until="domcontentloaded")
    await expect(dialog.locator(".verdict")).to_have_text("Pool gpu has its max of 1 machine.")
    await page.keyboard.press("Escape")
    await expect(dialog).not_to_be_visible()
    await expect(page).to_have_url(site.url)


async def test_an_address_of_nothing_says_so(site: Site) -> None:
    page = await site.signed_in(at="#machine=i-none")
    await expect(page.get_by_role("dialog").locator(".verdict")).to_contain_text("No such instance")
    assert all("404" in error for error in site.errors)
    site.errors = ()


async def test_the_back_button_goes_from_a_machine_to_its_job_and_to_the_page(site: Site) -> None:
    page = await site.signed_in("phone")
    await page.locator("#running .row").first.click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("link", name="i-000a").click()
    await expect(dialog.get_by_role("heading", name="i-000a")).to_be_visible()
    await page.go_back()
    await expect(dialog.get_by_role("heading", name="build (10)")).to_be_visible()
    await page.go_back()
    await expect(dialog).not_to_be_visible()


async def test_an_open_job_follows_its_changes(site: Site) -> None:
    page = await site.signed_in(at=JOB_ADDRESS)
    verdict = page.get_by_role("dialog").locator(".verdict")
    await expect(verdict).to_contain_text("max of 1 machine")
    site.view.reasons = ()
    snapshot = site.view.snapshot()
    gone = {name: row for name, row in snapshot.jobs.items() if name != "github:9801"}
    one = next(replace(row, pool=LINUX) for row in snapshot.jobs.values() if row.id == "github:9801")
    site.view.publish(replace(snapshot, jobs={**gone, one.id: one}))
    await expect(verdict).not_to_contain_text("max of 1 machine")


async def test_ended_jobs_are_listed_with_conclusion_wait_and_duration(site: Site) -> None:
    page = await site.signed_in()
    row = page.locator("#ended .row")
    await expect(row).to_contain_text("success")
    await expect(row).to_contain_text("waited 30 s · ran 2 min 50 s")
    await row.click()
    await expect(page.get_by_role("dialog").locator(".timeline")).to_contain_text("Ended: success")


async def test_what_happened_is_told_once_and_leads_to_job_and_machine(site: Site) -> None:
    page = await site.signed_in()
    lines = page.locator("#happenings li")
    await expect(lines.filter(has_text="i-0003 took build (3) of acme/shop")).to_have_count(1)
    await expect(lines.filter(has_text="for linux").filter(has_text="i-0003")).to_have_count(1)
    await expect(lines.filter(has_text="i-0003")).to_have_count(3)
    await lines.filter(has_text="i-0003 took").get_by_role("link", name="build (3)").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("heading", name="build (3)")).to_be_visible()
    await page.get_by_role("button", name="Close").click()
    await expect(lines.filter(has_text="i-0003 took").get_by_role("link", name="build (3)")).to_be_focused()


@pytest.mark.parametrize("size", SIZES)
async def test_nothing_moves_when_jobs_come_and_go(site: Site, size: str) -> None:
    page = await site.signed_in(size)
    places = (
        "[...document.querySelectorAll('.panel, .total')].map((one) => JSON.stringify(one.getBoundingClientRect()))"
    )
    before = await page.evaluate(places)
    snapshot = site.view.snapshot()
    site.view.publish(replace(snapshot, jobs={}))
    await expect(page.locator("#n-running")).to_have_text("0")
    await expect(page.locator("#waiting")).to_have_text("Nobody waits.")
    assert await page.evaluate(places) == before


async def test_a_daemon_that_dies_and_comes_back_costs_the_page_nothing(browser: Browser) -> None:
    async with served(await busy_view(), browser, tokens=()) as site:
        page = await site.signed_in(at=JOB_ADDRESS)
        await page.evaluate("document.querySelectorAll('#running li').forEach((row) => row.marked = true)")
        await site.stop()
        await expect(page.locator("#link")).to_contain_text("Reconnecting, as of")
        await expect(page.locator("#n-running")).to_have_text("11")
        site.view.has_ticked = False
        site.view.publish(replace(site.view.snapshot(), jobs={}, instances={}))
        await site.start()
        await expect(page.locator("#link")).to_have_attribute("title", "the daemon starts", timeout=10_000)
        await expect(page.locator("#n-running")).to_have_text("11")
        site.view.has_ticked = True
        site.view.publish((await busy_view()).snapshot())
        await expect(page.locator("#link")).to_have_text("Live", timeout=10_000)
        assert await page.evaluate("[...document.querySelectorAll('#running li')].every((row) => row.marked)")
        await expect(page.get_by_role("dialog")).to_be_visible()


async def test_the_plot_of_a_young_deployment_shows_its_few_minutes_up_to_now(browser: Browser) -> None:
    view = ExampleView(snapshot_of([]), rules_of(pool(LINUX)))
    await view.store.open()
    async with served(view, browser) as site:
        page = await site.signed_in()
        await expect(page.locator("#plot-title")).to_have_text("The last 5 minutes")
        await expect(page.locator("#plot-fleet svg")).to_contain_text("2.5 min ago")
        waiting = job(1, view.now() - timedelta(seconds=30))
        view.publish(snapshot_of([waiting]))
        await expect(page.locator("#plot-wait path.line.wait")).to_have_count(1)


async def test_the_plot_of_an_old_deployment_is_of_the_last_hour(site: Site) -> None:
    page = await site.signed_in()
    await expect(page.locator("#plot-title")).to_have_text("The last hour")
    await page.locator("#plot-wait svg").hover()
    await expect(page.locator("#plot-wait .said")).to_contain_text("targets")


async def test_money_shows_who_is_charged_and_what_for(browser: Browser) -> None:
    view = await busy_view()
    ended_at = view.now() - timedelta(seconds=1)
    lines = [a_cost("i-801", usd_nano=3 * 10**9), a_cost("i-802", use=Use.LOST, usd_nano=10**9, repo="<b>x</b>/y")]
    await view.store.commit(Changes(costs=[replace(line, ended_at=ended_at) for line in lines]))
    async with served(view, browser) as site:
        page = await site.signed_in()
        await expect(page.locator("#costs-uses")).to_contain_text("lost work $1.00")
        await expect(page.locator("#costs > li b").first).to_have_text("org/repo")
        await expect(page.locator("#costs")).to_contain_text("<b>x</b>/y")
        await page.get_by_label("By").select_option("capacity_type")
        await expect(page.locator("#costs > li b").first).to_have_text("spot")
        assert (await page.locator("#costs-csv").get_attribute("href") or "").startswith("/api/v1/costs.csv?since=20")
