"""The sandbox's cloud account on a clock, in virtual time."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import Event, Happening, Machine, Wish
from autoscaler.simulate.virtual_loop import VirtualClock, VirtualTimeLoop, run_virtually
from autoscaler.spi import CapacityPool, CapacityType, MachineState, ProviderName

POOL = CapacityPool(
    provider=ProviderName("aws"), region="r", zone="ra", machine_type="m", capacity_type=CapacityType.SPOT
)
TIMES = CloudTimes(boot=(5.0, 5.0), end=(1.0, 1.0), notice_s=10.0)


class Site:
    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.clock = VirtualClock(loop)
        self.account = CloudAccount(Capacity.of([Supply(pool=POOL, cpus=2, memory_gib=8)]), times=TIMES)
        self.driver = CloudDriver(self.account, clock=lambda: self.clock.now().timestamp())
        self.heard: list[tuple[float, str]] = []
        self.driver.listen(self._hear)

    def _hear(self, event: Event) -> None:
        word = event.state.value if event.kind is Happening.STATE else event.kind.value
        self.heard.append((round(event.at - self.began, 3), word))

    def launch(self) -> Machine:
        self.began = self.driver.now
        machine = self.account.launch(POOL, Wish(image="", user_data=""), self.driver.now)
        assert isinstance(machine, Machine)
        self.driver.settle()
        return machine


def played(play: Any) -> Site:
    found: list[Site] = []

    def main(loop: VirtualTimeLoop) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            found.append(Site(loop))
            await play(found[0])
            found[0].driver.close()

        return run()

    run_virtually(main)
    return found[0]


def test_time_alone_boots_and_takes_machines_and_says_so_in_order() -> None:
    async def play(site: Site) -> None:
        machine = site.launch()
        await asyncio.sleep(7)
        site.account.reclaim(machine.id, site.driver.now)
        site.driver.settle()
        await asyncio.sleep(11)

    site = played(play)
    assert site.heard == [
        (0.0, "pending"), (5.0, "running"), (5.0, "booted"),
        (7.0, "warned"), (17.0, "power_lost"), (17.0, "terminated"),
    ]  # fmt: skip


def test_what_a_listener_does_to_the_account_is_told_too() -> None:
    async def play(site: Site) -> None:
        def end(event: Event) -> None:
            if event.kind is Happening.BOOTED:
                site.account.terminate(event.machine.id, event.at)
                site.driver.settle()  # within a settling it is a part of that

        site.driver.listen(end)
        site.launch()
        await asyncio.sleep(6.5)

    site = played(play)
    assert [word for _, word in site.heard] == [
        "pending", "running", "booted", "power_lost", "terminating", "terminated",
    ]  # fmt: skip


def test_nothing_happens_after_the_close() -> None:
    async def play(site: Site) -> None:
        machine = site.launch()
        site.driver.close()
        await asyncio.sleep(100)
        assert machine.state is MachineState.PENDING

    assert [word for _, word in played(play).heard] == ["pending"]
