"""What every `spi.Provider` must do, whatever cloud it talks to. Subclass `ProviderContract`, give it a `driver`.

The driver plays the cloud's side: it knows a valid image and user data, an offering that has no room, how a machine
proves itself, and how to make a provider of another deployment on the same account. It never looks into the adapter.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest

from autoscaler.spi import (
    BatchToken,
    Bounds,
    CapacityUnavailable,
    CloudInstance,
    Evidence,
    IdentityRefused,
    InvalidRequest,
    LaunchBatch,
    MachineState,
    Offering,
    PoolName,
    Provider,
    ProviderId,
    Shape,
)
from tests.polling import until

CLAIM = "ab" * 32
LIVE = frozenset({MachineState.PENDING, MachineState.RUNNING})


class ProviderDriver(Protocol):
    """The other side. `slots` is how many machines the first offering has room for; `now` the provider's clock."""

    @property
    def provider(self) -> Provider: ...

    @property
    def slots(self) -> int: ...

    @property
    def now(self) -> datetime: ...

    def batch(self, token: str, *, count: int, offerings: Sequence[Offering]) -> LaunchBatch: ...

    def restarted(self) -> Provider:
        """A provider as the same deployment's next daemon makes it."""
        ...

    def foreign(self) -> Provider:
        """A provider of another deployment on the same account or host."""
        ...

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        """What this machine sends with a hello."""
        ...


class ProviderContract:
    async def test_an_offering_fits_the_shape_or_is_left_out(self, driver: ProviderDriver) -> None:
        everything = await driver.provider.offerings(Shape())
        assert everything
        cpus = everything[0].cpus
        assert await driver.provider.offerings(Shape(cpus=Bounds(low=cpus + 1000))) == []
        assert await driver.provider.offerings(Shape(arch="vax")) == []
        assert await driver.provider.offerings(Shape(exclude=("*",))) == []
        assert all(offering.capacity_pool.provider == driver.provider.name for offering in everything)

    async def test_a_launched_machine_is_listed_with_its_tags_and_runs(self, driver: ProviderDriver) -> None:
        (machine,) = await launch(driver, "b-1", count=1)
        listed = await until(lambda: find(driver.provider, machine.provider_id, {MachineState.RUNNING}))
        assert (listed.token, listed.pool) == (BatchToken("b-1"), PoolName("linux"))
        assert listed.capacity_pool == machine.capacity_pool
        assert listed.price_usd_hour == machine.price_usd_hour
        assert listed.launched_at.utcoffset() == timedelta(0)
        assert [i.provider_id for i in await driver.provider.describe([machine.provider_id])] == [machine.provider_id]

    async def test_a_repeated_token_makes_no_more_than_its_count(self, driver: ProviderDriver) -> None:
        first = await launch(driver, "b-1", count=2)
        again = await launch(driver, "b-1", count=2)
        assert ids(again) == ids(first)
        assert ids(await driver.provider.list_instances()) == ids(first)

    async def test_a_repeated_token_after_a_restart_makes_no_more_than_its_count(self, driver: ProviderDriver) -> None:
        first = await launch(driver, "b-1", count=2)
        offerings = await driver.provider.offerings(Shape())
        batch = replace(driver.batch("b-1", count=2, offerings=offerings[:1]), is_repeat=True)
        again = await driver.restarted().launch(batch)
        assert ids(again.instances) == ids(first)

    async def test_another_token_makes_other_machines(self, driver: ProviderDriver) -> None:
        first = await launch(driver, "b-1", count=1)
        second = await launch(driver, "b-2", count=1)
        assert not ids(first) & ids(second)

    async def test_an_offering_without_room_comes_back_as_a_refusal(self, driver: ProviderDriver) -> None:
        offering = (await driver.provider.offerings(Shape()))[0]
        result = await driver.provider.launch(driver.batch("b-1", count=driver.slots + 2, offerings=[offering]))
        assert len(result.instances) == driver.slots
        (refusal,) = result.refusals
        assert refusal.offering == offering
        assert isinstance(refusal.error, CapacityUnavailable)

    async def test_the_next_offering_serves_what_the_first_refuses(self, driver: ProviderDriver) -> None:
        offerings = (await driver.provider.offerings(Shape()))[:2]
        result = await driver.provider.launch(driver.batch("b-1", count=driver.slots + 1, offerings=offerings))
        assert len(result.instances) == driver.slots + 1
        assert result.instances[-1].capacity_pool == offerings[1].capacity_pool

    async def test_bad_user_data_or_image_is_an_invalid_request_and_makes_nothing(self, driver: ProviderDriver) -> None:
        offerings = await driver.provider.offerings(Shape())
        batch = driver.batch("b-1", count=1, offerings=offerings[:1])
        with pytest.raises(InvalidRequest):
            await driver.provider.launch(replace(batch, image=dict.fromkeys(batch.image, "/nowhere/at/all")))
        assert await driver.provider.list_instances() == []

    async def test_termination_is_idempotent_and_ignores_unknown_machines(self, driver: ProviderDriver) -> None:
        (machine, other) = await launch(driver, "b-1", count=2)
        for _ in range(2):
            await driver.provider.terminate([machine.provider_id, ProviderId("no-such-machine")])
        await until(lambda: find(driver.provider, machine.provider_id, {MachineState.TERMINATED}))
        await driver.provider.terminate([machine.provider_id])
        assert await find(driver.provider, other.provider_id, LIVE)

    async def test_unknown_machines_are_left_out_of_a_description(self, driver: ProviderDriver) -> None:
        assert await driver.provider.describe([ProviderId("no-such-machine"), ProviderId("../..")]) == []

    async def test_machines_are_found_again_after_a_restart(self, driver: ProviderDriver) -> None:
        first = await launch(driver, "b-1", count=2)
        assert ids(await driver.restarted().list_instances()) == ids(first)

    async def test_another_deployment_neither_sees_nor_ends_our_machines(self, driver: ProviderDriver) -> None:
        (machine,) = await launch(driver, "b-1", count=1)
        foreign = driver.foreign()
        assert await foreign.list_instances() == []
        await foreign.terminate([machine.provider_id])
        await foreign.interrupt([machine.provider_id])
        with pytest.raises(IdentityRefused):
            await foreign.identify(driver.evidence(machine.provider_id, claim=CLAIM, at=driver.now))
        assert await find(driver.provider, machine.provider_id, LIVE)

    async def test_a_machine_proves_itself_before_and_after_a_restart(self, driver: ProviderDriver) -> None:
        (machine,) = await launch(driver, "b-1", count=1)
        evidence = driver.evidence(machine.provider_id, claim=CLAIM, at=driver.now)
        assert (await driver.provider.identify(evidence)).provider_id == machine.provider_id
        assert (await driver.restarted().identify(evidence)).provider_id == machine.provider_id

    async def test_evidence_of_an_ended_machine_is_refused(self, driver: ProviderDriver) -> None:
        (machine,) = await launch(driver, "b-1", count=1)
        await driver.provider.terminate([machine.provider_id])
        await refuses(driver, driver.evidence(machine.provider_id, claim=CLAIM, at=driver.now), reason="unknown")

    async def test_evidence_of_a_machine_never_launched_is_refused(self, driver: ProviderDriver) -> None:
        evidence = driver.evidence(ProviderId("local-0000000000000000"), claim=CLAIM, at=driver.now)
        await refuses(driver, evidence, reason="unknown")

    async def test_tampered_evidence_is_refused(self, driver: ProviderDriver) -> None:
        (machine,) = await launch(driver, "b-1", count=1)
        evidence = driver.evidence(machine.provider_id, claim=CLAIM, at=driver.now)
        for key, value in evidence.document.items():
            forged = {**evidence.document, key: value[:-1] + ("0" if value[-1] != "0" else "1")}
            with pytest.raises(IdentityRefused):
                await driver.provider.identify(replace(evidence, document=forged))
        await refuses(driver, replace(evidence, document={}), reason="signature")

    async def test_an_interrupted_machine_is_taken_away(self, driver: ProviderDriver) -> None:
        (machine, other) = await launch(driver, "b-1", count=2)
        await until(lambda: find(driver.provider, machine.provider_id, {MachineState.RUNNING}))
        await driver.provider.interrupt([machine.provider_id, ProviderId("no-such-machine")])
        ended = await until(lambda: find(driver.provider, machine.provider_id, {MachineState.TERMINATED}))
        assert ended.end_detail
        assert await find(driver.provider, other.provider_id, LIVE)


async def launch(driver: ProviderDriver, token: str, *, count: int) -> Sequence[CloudInstance]:
    """Machines of the first offering; all that were asked for."""
    offerings = await driver.provider.offerings(Shape())
    result = await driver.provider.launch(driver.batch(token, count=count, offerings=offerings[:1]))
    assert result.refusals == ()
    assert len(result.instances) == count
    return result.instances


async def find(provider: Provider, provider_id: ProviderId, states: Collection[MachineState]) -> CloudInstance | None:
    """The listed machine, once it is in one of the states."""
    listed = [i for i in await provider.list_instances() if i.provider_id == provider_id and i.state in states]
    return listed[0] if listed else None


async def refuses(driver: ProviderDriver, evidence: Evidence, *, reason: str) -> None:
    with pytest.raises(IdentityRefused) as refused:
        await driver.provider.identify(evidence)
    assert refused.value.reason == reason


def ids(instances: Sequence[CloudInstance]) -> frozenset[ProviderId]:
    return frozenset(instance.provider_id for instance in instances)


def utc_now() -> datetime:
    return datetime.now(UTC)
