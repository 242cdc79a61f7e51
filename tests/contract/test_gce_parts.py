"""Launches whose parts fare differently: one is refused, one fails, one is lost. Nothing leaks or doubles.

Google's own client talks to the sandbox. Faults befall single bulk inserts, counted from one; machines of an operation
that still runs are not listed yet, as Google may have it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from autoscaler.sandbox.gce_wire import GceError
from autoscaler.spi import (
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    Offering,
    OutcomeUnknown,
    Provider,
    Shape,
    Throttled,
    Unauthorized,
)
from tests.contract.test_gce_trouble import bulk_inserts, names_in_world
from tests.gce_site import LARGE, OTHER_REGION, REGION, SMALL, ZONES, GceSite, batch, serving

REGIONS = (REGION, OTHER_REGION)
ALL_BUT_LISTING = ("compute.[!i]*", "compute.images.*", "compute.instances.[!l]*", "iam.*")


@dataclass(slots=True)
class Inserts:
    """What befalls bulk inserts, by number: a fault of the sandbox, an answer instead, or something to do after."""

    faults: dict[int, str] = field(default_factory=dict)
    answers: dict[int, GceError] = field(default_factory=dict)
    after: dict[int, Callable[[], None]] = field(default_factory=dict)
    count: int = 0
    hides_unfinished: bool = False
    failing_with: str = ""
    """The code that operations fail with, whatever the sandbox says."""
    site: GceSite | None = None

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.endswith("/aggregated/instances") and self.hides_unfinished:
            return self._without_unfinished(await handler(request))
        if "/operations/operation-" in request.path and self.failing_with:
            return self._failed_otherwise(await handler(request))
        if not request.path.endswith("/instances/bulkInsert"):
            return await handler(request)
        self.count += 1
        number, site = self.count, self.site
        assert site is not None
        if (error := self.answers.get(number)) is not None:
            return web.json_response(error.body(), status=error.status)
        if (fault := self.faults.get(number)) is not None:
            setattr(site.faults, fault, 1.0)
        response = await handler(request)
        site.faults.end()
        if (act := self.after.get(number)) is not None:
            act()
        return response

    def _failed_otherwise(self, response: web.StreamResponse) -> web.StreamResponse:
        assert isinstance(response, web.Response)
        assert response.text is not None
        operation = json.loads(response.text)
        if "error" in operation:
            operation["error"] = {"errors": [{"code": self.failing_with, "message": "told so"}]}
        return web.json_response(operation)

    def _without_unfinished(self, response: web.StreamResponse) -> web.StreamResponse:
        assert isinstance(response, web.Response)
        assert self.site is not None
        assert response.text is not None
        now = self.site.face.operations
        running = {one.scope.partition("/")[2] for one in now if one.kind == "bulkInsert" and not one.is_done}
        page = json.loads(response.text)
        for scope in page.get("items", {}):
            if scope.removeprefix("zones/").rpartition("-")[0] in running:
                page["items"][scope].pop("instances", None)
        return web.json_response(page)


@pytest.fixture
def inserts() -> Inserts:
    return Inserts()


@pytest.fixture
async def site(tmp_path: Path, inserts: Inserts) -> AsyncIterator[GceSite]:
    async with serving(tmp_path, middlewares=[inserts.middleware]) as made:
        inserts.site = made
        yield made


async def spot_in(provider: Provider, zone: str, machine_type: str) -> Offering:
    found = {one.capacity_pool: one for one in await provider.offerings(Shape(types=(machine_type,)))}
    (offering,) = (
        one for where, one in found.items() if where.zone == zone and where.capacity_type is CapacityType.SPOT
    )
    return offering


async def three_parts(provider: Provider) -> list[Offering]:
    """Each is asked for by a call of its own: zones that offer different types, and another region."""
    return [
        await spot_in(provider, ZONES[0], SMALL),
        await spot_in(provider, ZONES[1], LARGE),
        await spot_in(provider, ZONES[3], SMALL),
    ]


async def test_a_lost_part_is_settled_before_the_repeat_asks_parts_that_were_not_asked(
    site: GceSite, inserts: Inserts
) -> None:
    provider = site.provider(regions=REGIONS)
    offered = await three_parts(provider)
    site.account.capacity.exhausted |= {offered[0].capacity_pool}
    site.face.behaviour.operation_s = (1.5, 1.5)
    inserts.hides_unfinished = True
    inserts.faults = {2: "throttle", 3: "lost_answer"}
    asked = batch("b-1", count=2, offerings=offered)
    with pytest.raises(OutcomeUnknown):
        await provider.launch(asked)
    result = await provider.launch(replace(asked, is_repeat=True))
    assert {one.capacity_pool.region for one in result.instances} == {OTHER_REGION}
    assert len(names_in_world(site)) == len(result.instances) == 2


async def test_a_request_that_was_lost_on_its_way_is_made_by_the_repeat(site: GceSite, inserts: Inserts) -> None:
    provider = site.provider(regions=REGIONS)
    asked = batch("b-1", count=2, offerings=(await three_parts(provider))[:1])
    inserts.faults = {1: "internal_error"}
    with pytest.raises(OutcomeUnknown):
        await provider.launch(asked)
    assert names_in_world(site) == []
    result = await provider.launch(replace(asked, is_repeat=True))
    assert len(names_in_world(site)) == len(result.instances) == 2
    assert bulk_inserts(site) == 1


async def test_a_lost_answer_that_was_a_refusal_lets_the_repeat_go_on(site: GceSite, inserts: Inserts) -> None:
    provider = site.provider(regions=REGIONS)
    offered = await three_parts(provider)
    inserts.faults = {1: "internal_error"}
    site.face.behaviour.stockout_at_once = True
    asked = batch("b-1", count=2, offerings=offered[1:])
    with pytest.raises(OutcomeUnknown):
        await provider.launch(asked)
    site.account.capacity.exhausted |= {offered[1].capacity_pool}
    result = await provider.launch(replace(asked, is_repeat=True))
    assert {one.capacity_pool for one in result.instances} == {offered[2].capacity_pool}
    assert [one.offering for one in result.refusals] == [offered[1]]


async def test_a_part_that_fails_takes_nothing_from_what_others_made(site: GceSite, inserts: Inserts) -> None:
    provider = site.provider(regions=REGIONS)
    offered = (await three_parts(provider))[1:]
    inserts.answers = {2: GceError(409, "resourceNotReady", "The resource is not ready")}
    result = await provider.launch(batch("b-1", count=5, offerings=offered))
    assert len(result.instances) == len(names_in_world(site)) == 3
    assert [one.offering for one in result.refusals] == [offered[0], offered[1]]
    assert isinstance(result.refusals[0].error, CapacityUnavailable)
    assert "not ready" in str(result.refusals[1].error)


async def test_machines_that_were_made_are_not_forgotten_when_permissions_go_meanwhile(
    site: GceSite, inserts: Inserts
) -> None:
    site.face.access.grant("key")
    provider = site.provider(regions=REGIONS, token="key")
    asked = batch("b-1", count=1, offerings=(await three_parts(provider))[:1])
    inserts.after = {1: lambda: site.face.access.grant("key", allowed=ALL_BUT_LISTING)}
    with pytest.raises(OutcomeUnknown, match=r"compute\.instances\.list"):
        await provider.launch(asked)
    site.face.access.grant("key")
    result = await provider.launch(replace(asked, is_repeat=True))
    assert len(names_in_world(site)) == len(result.instances) == 1


async def test_a_launch_that_cannot_be_followed_says_which_permission_is_missing(
    site: GceSite, inserts: Inserts
) -> None:
    site.face.access.grant("key", allowed=["compute.[!r]*", "iam.*"])
    provider = site.provider(regions=REGIONS, token="key")
    asked = batch("b-1", count=1, offerings=(await three_parts(provider))[:1])
    with pytest.raises(OutcomeUnknown, match=r"compute\.regionOperations\.get"):
        await provider.launch(asked)
    assert len(names_in_world(site)) == 1


@pytest.mark.parametrize("fails_when_unreachable", [True, False])
async def test_an_outage_of_one_region_holds_up_no_launch_in_another(
    site: GceSite, fails_when_unreachable: bool
) -> None:
    provider = site.provider(regions=REGIONS)
    offered = await three_parts(provider)
    site.face.behaviour.unreachable = {offered[2].capacity_pool.zone}
    site.face.behaviour.fails_when_unreachable = fails_when_unreachable
    asked = batch("b-1", count=2, offerings=offered[:1])
    assert len((await provider.launch(asked)).instances) == 2
    with pytest.raises(OutcomeUnknown):  # it may have been asked there too, for all that a repeat knows
        await provider.launch(replace(asked, is_repeat=True))
    with pytest.raises(OutcomeUnknown, match="listed"):
        await provider.launch(batch("b-2", count=2, offerings=offered[2:]))
    site.face.behaviour.unreachable = set()
    assert len((await provider.launch(batch("b-2", count=2, offerings=offered[2:]))).instances) == 2
    assert len(names_in_world(site)) == 4


async def test_a_new_launch_waits_for_no_listing_budget(site: GceSite, inserts: Inserts) -> None:
    provider = site.provider(regions=REGIONS)
    asked = batch("b-1", count=2, offerings=(await three_parts(provider))[:1])
    site.faults.throttle = 1.0
    with pytest.raises(Throttled):  # nothing was asked, so that other providers are asked at once
        await provider.launch(asked)
    assert names_in_world(site) == []


@pytest.mark.parametrize(
    ("code", "expected"), [("RESOURCE_NOT_FOUND", InvalidRequest), ("PERMISSIONS_ERROR", Unauthorized)]
)
async def test_a_configuration_that_only_the_operation_finds_wrong_fails_the_launch(
    site: GceSite, inserts: Inserts, code: str, expected: type[Exception]
) -> None:
    provider = site.provider(regions=REGIONS)
    offered = await three_parts(provider)
    site.account.capacity.exhausted |= {one.capacity_pool for one in offered}
    inserts.failing_with = code
    with pytest.raises(expected, match=code):
        await provider.launch(batch("b-1", count=1, offerings=offered))
