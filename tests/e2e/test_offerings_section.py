"""The page's table of capacity pools in Chromium: price, learned risk, cooldowns, machines; on desktop and phone."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from autoscaler.model import CapacityEvidence, Cooldown, ScopeCooldown
from autoscaler.spi import CapacityScope, CapacityType, Offering
from tests.admin_world import GPU, LINUX, OFFERING, SPOT, ExampleView, busy_view
from tests.e2e.status_site import SIZES, Site, chromium, served

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as one:
        yield one


def offering(machine_type: str, price: float, *, zone: str = "eu-central-1b", **changes: Any) -> Offering:
    place = replace(SPOT, machine_type=machine_type, zone=zone, **changes)
    return replace(OFFERING, capacity_pool=place, price_usd_hour=price, on_demand_usd_hour=0.1036)


MARKET = (
    replace(OFFERING, on_demand_usd_hour=0.1036),
    offering("m7i.large", 0.0398),
    offering("m6a.large", 0.0377, zone="eu-central-1c"),
    offering("m5.large", 0.0451, zone="eu-central-1a"),
    offering("m7i.large", 0.1036, capacity_type=CapacityType.ON_DEMAND),
)


async def market_view() -> ExampleView:
    """A fleet on five capacity pools: one cools, one loses machines, one refused a few launches, one is bought."""
    view = await busy_view()
    now = view.now()
    risky, refused = MARKET[2].capacity_pool, MARKET[3].capacity_pool
    known = {
        SPOT: CapacityEvidence(capacity_pool=SPOT, at=now, hours=41.2, interruptions=0.4, asked=210, refused=3.2),
        risky: CapacityEvidence(capacity_pool=risky, at=now, hours=9.1, interruptions=6.3, asked=40, refused=0),
        refused: CapacityEvidence(capacity_pool=refused, at=now, asked=9, refused=9),
    }
    until = now + timedelta(seconds=75)
    cooling = Cooldown(capacity_pool=refused, until=until, failures=3, reason=f"no capacity {HOSTILE}")
    quota = ScopeCooldown(
        provider=SPOT.provider,
        scope=CapacityScope(region="eu-west-1", capacity_type=CapacityType.SPOT),
        until=until,
        failures=1,
        reason="MaxSpotInstanceCountExceeded: 256 vCPUs",
    )
    snapshot = replace(
        view.snapshot(),
        offerings={LINUX: MARKET, GPU: MARKET[:1]},
        evidence=known,
        cooldowns={refused: cooling},
        scope_cooldowns=(quota,),
    )
    view.publish(snapshot)
    return view


@pytest_asyncio.fixture(loop_scope="module")
async def site(browser: Browser) -> AsyncIterator[Site]:
    async with served(await market_view(), browser) as one:
        yield one


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_capacity_pools_show_price_risk_and_what_cools(
    site: Site, size: str, scheme: str, tmp_path: Path
) -> None:
    page = await site.signed_in(size, scheme)
    lines = page.locator("#offerings > tr")
    await expect(lines).to_have_count(5)
    await expect(page.locator("#offerings-note")).to_have_text("5 capacity pools, 1 cooling")
    await expect(lines.first).to_contain_text("18 machines")
    cooling = lines.nth(1)
    await expect(cooling).to_contain_text("m5.large")
    await expect(cooling.locator(".state")).to_contain_text("3 times in a row: no capacity <img src=x")
    await expect(lines.filter(has_text="6.3 interrupted").locator(".riskbar i")).to_have_class("high")
    await expect(lines.filter(has_text="m7i.large").first).to_contain_text("60 % off")
    await expect(lines.filter(has_text="on-demand")).to_contain_text("not taken back")
    await expect(page.locator("#offerings-scopes")).to_contain_text("MaxSpotInstanceCountExceeded")
    assert await page.title() != "owned"
    assert await page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    shot = await page.locator(".o-offerings").screenshot(path=tmp_path / f"offerings-{size}-{scheme}.png")
    assert shot.startswith(b"\x89PNG")


async def test_a_pool_can_be_picked_and_what_it_never_uses_is_told(site: Site) -> None:
    page = await site.signed_in()
    pick = page.locator("#offerings-pool")
    await expect(pick.locator("option")).to_have_count(4)
    await pick.select_option("gpu")
    await expect(page.locator("#offerings > tr")).to_have_count(1)
    await expect(page.locator("#offerings")).to_contain_text("no. 1 for gpu")


async def test_before_any_offering_is_known_the_page_says_so(browser: Browser) -> None:
    view = await busy_view()
    view.publish(replace(view.snapshot(), offerings={}))
    async with served(view, browser) as site:
        page = await site.signed_in()
        await expect(page.locator("#offerings-more")).to_have_text("No provider offers a machine for any pool yet.")
        await expect(page.locator("#offerings-table")).to_be_hidden()
