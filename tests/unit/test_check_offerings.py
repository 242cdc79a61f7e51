"""`check --online` says whether a pool may use what is offered, and whether there is enough of it to rely on spot."""

from dataclasses import replace

from autoscaler.check_probes import FEW_CAPACITY_POOLS, _judge_offerings
from autoscaler.spi import CapacityType, Finding, Offering, Verdict
from tests.admin_world import LINUX, OFFERING, SPOT, pool

MANY = [
    replace(OFFERING, capacity_pool=replace(SPOT, machine_type=f"t{number}.large"))
    for number in range(FEW_CAPACITY_POOLS)
]
BOUGHT = replace(OFFERING, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND))


def judged(*found: Offering, spans_regions: bool = True, **changes: object) -> Finding:
    return _judge_offerings("pool[0].shape", pool(LINUX, "linux", **changes), found, spans_regions=spans_regions)


def test_enough_capacity_pools_are_fine() -> None:
    finding = judged(*MANY, BOUGHT)
    assert (finding.verdict, finding.message) == (Verdict.OK, f"{len(MANY) + 1} offerings fit it")


def test_few_spot_capacity_pools_in_a_cloud_are_warned_about() -> None:
    finding = judged(*MANY[:-1], BOUGHT)
    assert finding.verdict is Verdict.WARNING
    assert "can choose among 3 spot capacity pools only" in finding.message
    assert judged(MANY[0], spans_regions=False).verdict is Verdict.OK, "one host has no more"
    assert judged(BOUGHT, spot_enabled=False).verdict is Verdict.OK, "nobody wants spot"


def test_offerings_that_the_pool_may_not_use_are_refused_with_the_reason() -> None:
    finding = judged(*MANY, max_spot_price_usd_hour=0.01)
    assert finding.verdict is Verdict.REFUSED
    assert "it costs more than spot.max_price (0.01 USD/h)" in finding.message
