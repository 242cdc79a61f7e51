"""The demo on the local provider: machines are processes of this host, started by the daemon itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.demo_cloud import (
    BOOT_S,
    IMAGE,
    RUNNERS,
    SLOTS,
    SLOW_FACTOR,
    CloudConfig,
    CloudFaultShares,
    Pace,
)
from autoscaler.sandbox.demo_pools import DemoPool, MachineType
from autoscaler.spi import ProviderId, ProviderName, ProviderSettings, Surroundings
from providers.local import create
from providers.local_isolation import probe

NAME = "here"


class LocalCloud:
    """See `demo_cloud.DemoCloud`. `say` hears what a person should know."""

    kind = "local"
    pace = Pace()

    def __init__(self, deployment: str, say: Callable[[str], None]) -> None:
        self._deployment = deployment
        self._say = say
        self._state_dir = Path()
        self._isolation = "auto"
        self._calls = Calls()

    async def start(
        self, folder: Path, pools: Sequence[DemoPool], *, faults: CloudFaultShares, seed: int
    ) -> CloudConfig:
        self._isolation = choose_isolation(folder)
        if self._isolation == "process":
            self._say("bubblewrap does not work here: the demo's machines are plain processes of your own user.")
        self._state_dir = folder / "machines"
        return CloudConfig(provider=NAME, sections=self._sections(pools, faults, seed))

    def _sections(self, pools: Sequence[DemoPool], faults: CloudFaultShares, seed: int) -> str:
        capacity = ",\n    ".join(
            f'{{ machine_type = "{one.name}", zone = "here-a", cpus = {one.cpus}, memory_gib = {one.memory_gib}, '
            f'arch = "x86_64", price_usd_hour = {one.spot_usd_hour}, '
            f"on_demand_price_usd_hour = {one.on_demand_usd_hour}, slots = {SLOTS} }}"
            for one in _types(pools)
        )
        return f"""[[provider]]
name = "{NAME}"
kind = "local"
state_dir = {json.dumps(str(self._state_dir))}
isolation = "{self._isolation}"
keep_ended_s = 30
boot = {{ min_s = {BOOT_S[0]}, max_s = {BOOT_S[1]} }}
slow_share = {faults.slow_boot}
refuse_share = {faults.refuse}
slow_factor = {SLOW_FACTOR}
seed = {seed}
capacity_pools = [
    {capacity},
]

[[image]]
name = "{IMAGE}"
[image.references.local]
github_runner = {json.dumps(RUNNERS["github_runner"])}
gitlab_runner = {json.dumps(RUNNERS["gitlab_runner"])}
"""

    def shape_of(self, pool: DemoPool) -> str:
        return f'types = ["{pool.machine_type.name}"]'

    def capacity_pools(self, pools: Sequence[DemoPool]) -> list[dict[str, object]]:
        return [
            {
                "machine_type": one.name,
                "cpus": one.cpus,
                "memory_gib": one.memory_gib,
                "slots": SLOTS,
                "spot_usd_hour": one.spot_usd_hour,
                "on_demand_usd_hour": one.on_demand_usd_hour,
            }
            for one in _types(pools)
        ]

    async def reclaim(self, machine: ProviderId, *, notice_s: float) -> None:
        """By an adapter of the demo's own, whose notice is as long as is asked for here."""
        options = {"state_dir": str(self._state_dir), "isolation": self._isolation, "notice_s": notice_s}
        settings = ProviderSettings(name=ProviderName(NAME), kind="local", regions=(), endpoint_url="", options=options)
        surroundings = Surroundings(
            deployment=self._deployment, runner_prefix="", clock=SystemClock(), gates=self._calls
        )
        await create(settings, surroundings).interrupt([machine])

    def end_faults(self) -> None:
        """Slow boots and refusals are the provider's own, and stay."""

    async def aclose(self) -> None:
        await self._calls.aclose()


def _types(pools: Sequence[DemoPool]) -> list[MachineType]:
    return list({pool.machine_type.name: pool.machine_type for pool in pools}.values())


def choose_isolation(folder: Path) -> str:
    """ "auto"; "process" where that finds nothing. The demo's jobs are the demo's own, and so are the daemon's secrets
    that they could read then: nobody has to be kept from anything. Blocking, some 10 ms."""
    try:
        probe(folder, "auto")
    except OSError:
        return "process"
    return "auto"
