"""The local provider passes the contract on every rung of its isolation; and what only it promises."""

import os
import signal
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoscaler.spi import CapacityUnavailable, MachineState, ProviderError, ProviderId, SettingsError, Shape
from providers.local_isolation import RUNGS
from tests.contract.provider_contract import CLAIM, ProviderContract, find, launch, refuses
from tests.local_site import LocalSite, local_site, processes_with
from tests.polling import until


class TestLocalProvider(ProviderContract):
    @pytest.fixture(params=RUNGS)
    async def driver(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalSite]:
        async with local_site(tmp_path, isolation=request.param) as site:
            assert site.provider.isolation == request.param
            yield site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LocalSite]:
    async with local_site(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("seconds", [-61, 62])
async def test_evidence_outside_the_window_is_refused(site: LocalSite, seconds: int) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    at = site.now + timedelta(seconds=seconds)
    await refuses(site, site.evidence(machine.provider_id, claim=CLAIM, at=at), reason="window")


async def test_evidence_is_bound_to_its_claim(site: LocalSite) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    evidence = site.evidence(machine.provider_id, claim=CLAIM, at=site.now)
    await refuses(site, replace(evidence, claim="cd" * 32), reason="signature")


@pytest.mark.parametrize("address", ["192.0.2.7", "::ffff:192.0.2.7", "", "localhost"])
async def test_evidence_from_another_host_is_refused(site: LocalSite, address: str) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    evidence = site.evidence(machine.provider_id, claim=CLAIM, at=site.now)
    await refuses(site, replace(evidence, peer_address=address), reason="address")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_evidence_over_loopback_is_taken(site: LocalSite, address: str) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    evidence = site.evidence(machine.provider_id, claim=CLAIM, at=site.now)
    proven = await site.provider.identify(replace(evidence, peer_address=address))
    assert proven.provider_id == machine.provider_id


async def test_two_providers_of_one_deployment_keep_apart(site: LocalSite) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    other = site.make("ours", name="second")
    assert await other.list_instances() == []
    await other.terminate([machine.provider_id])
    assert await find(site.provider, machine.provider_id, {MachineState.PENDING, MachineState.RUNNING})


async def test_foreign_folders_are_never_touched(site: LocalSite) -> None:
    root = site.state_dir / "ours"
    (root / "local-somebody" / "machine").mkdir(parents=True)
    (root / "local-somebody" / "meta.json").write_text('{"provider": "else"}')
    (root / "notes").write_text("mine")
    await site.provider.terminate([ProviderId("local-somebody")])
    assert await site.provider.list_instances() == []
    assert (root / "local-somebody" / "machine").is_dir()
    assert not (root / "local-somebody" / "terminate").exists()


async def test_the_master_key_is_readable_by_its_owner_alone_and_lasts(site: LocalSite) -> None:
    path = site.state_dir / "ours" / "master.key"
    before = path.read_bytes()
    site.restarted()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(before) == 32
    assert path.read_bytes() == before


async def test_an_unreadable_machine_fails_the_listing_while_it_lives_and_is_left_out_after(site: LocalSite) -> None:
    (machine,) = await launch(site, "b-1", count=1)
    await until(lambda: find(site.provider, machine.provider_id, {MachineState.RUNNING}))
    (site.folder(machine.provider_id) / "meta.json").write_text("")
    with pytest.raises(ProviderError):
        await site.provider.list_instances()
    for pid in site.supervisors():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not processes_with(machine.provider_id))
    assert await site.provider.list_instances() == []


async def test_ended_machines_are_listed_for_a_while_then_their_folder_goes(tmp_path: Path) -> None:
    async with local_site(tmp_path) as site:
        (machine,) = await launch(site, "b-1", count=1)
        await site.provider.terminate([machine.provider_id])
        await until(lambda: find(site.provider, machine.provider_id, {MachineState.TERMINATED}))
        assert not (site.folder(machine.provider_id) / "machine").exists()
        forgetful = site.make("ours", keep_ended_s=0)
        await until(lambda: is_empty(forgetful))
        assert not site.folder(machine.provider_id).exists()


async def is_empty(provider: Any) -> bool:
    return list(await provider.list_instances()) == []


async def test_boot_time_is_drawn_from_its_range_and_slow_boots_take_longer(tmp_path: Path) -> None:
    async with local_site(tmp_path, boot={"min_s": 30, "max_s": 60}) as site:
        (machine,) = await launch(site, "b-1", count=1)
        assert await find(site.provider, machine.provider_id, {MachineState.PENDING})
        await site.provider.terminate([machine.provider_id])
        ended = await until(lambda: find(site.provider, machine.provider_id, {MachineState.TERMINATED}))
        assert ended.end_detail == "terminated"


async def test_prices_and_slots_come_from_the_capacity_pools(tmp_path: Path) -> None:
    pools = [{"machine_type": "m7i.large", "zone": "a", "cpus": 2, "memory_gib": 8, "slots": 1, "price_usd_hour": 0.04}]
    pools.append({"machine_type": "c7i.large", "zone": "b", "cpus": 2, "memory_gib": 4, "price_usd_hour": 0.03})
    pools[0]["on_demand_price_usd_hour"] = 0.1
    async with local_site(tmp_path, capacity_pools=pools) as site:
        offered = await site.provider.offerings(Shape(types=("m7i.*",)))
        assert [(o.capacity_pool.key, o.price_usd_hour) for o in offered] == [
            ("local/a/m7i.large/spot", 0.04),
            ("local/a/m7i.large/on_demand", 0.1),
        ]
        result = await site.provider.launch(site.batch("b-1", count=2, offerings=offered))
        assert [i.price_usd_hour for i in result.instances] == [0.04, 0.1]


async def test_a_share_of_spot_launches_is_refused_and_a_repeat_is_refused_again(tmp_path: Path) -> None:
    pools = [{"cpus": 1, "memory_gib": 1, "slots": 99, "price_usd_hour": 0.04, "on_demand_price_usd_hour": 0.1}]
    async with local_site(tmp_path, capacity_pools=pools, refuse_share=1.0, seed=1) as site:
        spot, on_demand = await site.provider.offerings(Shape())
        batch = site.batch("b-1", count=1, offerings=[spot])
        for _ in range(2):
            result = await site.provider.launch(batch)
            assert result.instances == ()
            assert [type(one.error) for one in result.refusals] == [CapacityUnavailable]
        bought = await site.provider.launch(site.batch("b-2", count=1, offerings=[spot, on_demand]))
        assert [one.capacity_pool for one in bought.instances] == [on_demand.capacity_pool]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"slot": 3}, "slot"),
        ({"isolation": "docker"}, "isolation"),
        ({"boot": {"min_s": 3, "max_s": 2}}, "boot.max_s"),
        ({"boot": {"min": 3}}, "boot"),
        ({"slow_share": 2}, "slow_share"),
        ({"refuse_share": 1.5}, "refuse_share"),
        ({"slots": True}, "slots"),
        ({"notice_s": -1}, "notice_s"),
        ({"binds": "/opt"}, "binds"),
        ({"binds": ["/usr", "toolchain"]}, "binds[1]"),
        ({"binds": ["/nowhere/to/be/found"]}, "binds[0]"),
        ({"binds": ["/"]}, "binds[0]"),
        ({"binds": ["/proc"]}, "binds[0]"),
        ({"binds": ["/opt/../etc"]}, "binds[0]"),
        ({"limits": 1}, "limits"),
        ({"capacity_pools": [{"price": 1}]}, "capacity_pools[0].price"),
        ({"capacity_pools": [{}, {}]}, "capacity_pools[1].machine_type"),
    ],
)
async def test_a_wrong_option_is_named(site: LocalSite, options: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as error:
        site.make("ours", **options)
    assert error.value.key == key


async def test_a_deployment_name_cannot_leave_the_state_folder(site: LocalSite) -> None:
    with pytest.raises(SettingsError):
        site.make("../escape")
