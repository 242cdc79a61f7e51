"""World files: what they say of clouds, and what is said when they are wrong."""

import json
import random
from pathlib import Path

import pytest

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Capacity, Shortage
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_machines import Happening, Wish
from autoscaler.sandbox.cloud_spans import Lognormal, drawn
from autoscaler.sandbox.cloud_world_file import WorldError, load_supplies, load_world
from autoscaler.spi import CapacityType, ProviderName
from tests.shared import require_shared


def test_a_world_file_is_read_with_its_traces(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(
        json.dumps({"metadata": {"gap_seconds": 60}, "data": [2, 1], "prices": [0.1, 0.2]})
    )
    text = """use_trace_prices = true
[[capacity_pool]]
provider = "aws"
region = "us-east-1"
zone = "us-east-1b"
machine_type = "m7i.xlarge"
cpus = 4
memory_gib = 16
capacity_type = "spot"
price_usd_hour = 0.0684
trace = "t.json"
slots = 10
"""
    path = tmp_path / "world.toml"
    path.write_text(text)
    (found,) = load_supplies(path)
    assert (found.slots_at(0), found.slots_at(60)) == (10, 5)
    assert (found.price_at(0), found.price_at(60)) == (0.1, 0.2)
    path.write_text(text.replace("cpus = 4\n", ""))
    with pytest.raises(WorldError, match=r"capacity_pool\[0\]: cpus is missing"):
        load_supplies(path)


@pytest.mark.parametrize("name", ["r5x3", "cpu7", "v100x9", "n16x3"])
def test_recorded_worlds_can_be_read(name: str) -> None:
    supplies = load_supplies(require_shared() / "data/scenarios" / name / "world-seed1.toml")
    assert supplies
    assert any(one.availability is not None for one in supplies)


TIMES = """notice_s = 6
unannounced = 0.25
stoppable = ["on_demand"]
[boot]
cold = { median_s = 62, sigma = 0.2, min_s = 40, max_s = 110 }
start = { min_s = 15, max_s = 25 }
stop_s = 30.0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "world.toml"
    path.write_text(text)
    return path


def test_times_of_a_world_are_read(tmp_path: Path) -> None:
    world = load_world(written(tmp_path, TIMES))
    assert (world.times.notice_s, world.times.start, world.times.stop) == (6, (15, 25), (30, 30))
    assert (world.unannounced, world.stoppable) == (0.25, {CapacityType.ON_DEMAND})
    dice = random.Random(1)
    found = sorted(drawn(world.times.boot, dice) for _ in range(2001))
    assert (found[0] >= 40, found[-1] <= 110, 60 < found[1000] < 64) == (True, True, True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TIMES.replace("0.25", "1.5"), "unannounced: 1.5 is no share"),
        (TIMES.replace("on_demand", "reserved"), "'reserved' is not a valid CapacityType"),
        (TIMES.replace("min_s = 15, ", ""), "min_s is missing"),
        (TIMES.replace("min_s = 15", "min_s = 26"), "are no range"),
        ("notice_s = ", "Invalid value"),
        ("[capacity_pool]", "must be an array of tables"),
    ],
)
def test_a_wrong_world_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(WorldError, match=problem):
        load_world(written(tmp_path, text))


def test_the_capacity_pools_of_a_world_may_be_renamed_to_a_provider() -> None:
    world = load_world(require_shared() / "data/scenarios/advisor9/world-seed1.toml", provider=ProviderName("mine"))
    assert {one.pool.provider for one in world.supplies} == {"mine"}
    assert isinstance(world.times.boot, Lognormal)


@pytest.mark.parametrize("name", ["v100x9", "n16x3"])
def test_a_recorded_capacity_pool_never_holds_more_machines_than_it_has_after_a_step(name: str) -> None:
    world = load_world(require_shared() / f"data/scenarios/{name}/world-seed1.toml")
    supply = next(
        one for one in world.supplies if one.availability is not None and len(set(one.availability.values)) > 1
    )
    account = CloudAccount(Capacity.of([supply]), times=world.times, faults=CloudFaults(no_notice=0.3, seed=5))
    now, refused, most = 0.0, 0, 0
    while now < 6 * 86400:
        account.advance(now)
        assert account.capacity.used(supply.pool) <= supply.slots_at(now)
        for _ in range(3):
            refused += isinstance(account.launch(supply.pool, Wish(image="", user_data=""), now), Shortage)
        most = max(most, account.capacity.used(supply.pool))
        now += 97.0
    events = account.drain()
    taken = {event.machine.id for event in events if event.machine.was_taken}
    warned = {event.machine.id for event in events if event.kind is Happening.WARNED}
    assert refused
    assert most > 50
    assert 0.5 < len(taken & warned) / len(taken) < 0.9
