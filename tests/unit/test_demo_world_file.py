"""The demo's `--world`: whose capacity pools it takes, how they are called and clocked, what pools ask for in it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from autoscaler.cli import main
from autoscaler.sandbox.cloud_capacity import Series
from autoscaler.sandbox.demo_options import DemoError
from autoscaler.sandbox.demo_pools import STANDARD_POOLS
from autoscaler.sandbox.demo_world_file import USUAL, expectations, recorded_world, shape_in
from tests.shared import require_shared

AWS: Mapping[str, object] = {
    "provider": "aws",
    "region": "us-east-1",
    "zone": "us-east-1b",
    "machine_type": "m7i.xlarge",
    "cpus": 4,
    "memory_gib": 16,
    "capacity_type": "spot",
    "price_usd_hour": 0.07,
}
GCE = {**AWS, "provider": "gce", "region": "us-central1", "zone": "us-central1-c", "machine_type": "n2-standard-4"}


def written(folder: Path, *pools: Mapping[str, object], head: str = "") -> Path:
    tables = ("\n".join(f"{key} = {json.dumps(value)}" for key, value in pool.items()) for pool in pools)
    path = folder / "world.toml"
    path.write_text(head + "\n".join(f"[[capacity_pool]]\n{table}" for table in tables))
    return path


@pytest.mark.parametrize(
    ("kind", "place"),
    [("aws", ("us-east-1", "us-east-1b", "m7i.xlarge")), ("gce", ("us-central1", "us-central1-c", "n2-standard-4"))],
)
def test_a_world_of_both_clouds_gives_each_its_own_capacity_pools(
    tmp_path: Path, kind: str, place: tuple[str, ...]
) -> None:
    world = recorded_world(written(tmp_path, AWS, GCE), kind=kind, speed=1.0)
    (pool,) = (one.pool for one in world.supplies)
    assert (pool.provider, (pool.region, pool.zone, pool.machine_type)) == (kind, place)


@pytest.mark.parametrize(
    ("kind", "other", "place"),
    [
        ("gce", AWS, ("us-east1", "us-east1-b", "m7i-xlarge")),
        ("aws", GCE, ("us-central-1", "us-central-1c", "n2-standard-4")),
        (
            "aws",
            {**GCE, "region": "europe-west4", "zone": "europe-west4-a"},
            ("eu-west-4", "eu-west-4a", "n2-standard-4"),
        ),
    ],
)
def test_a_world_of_another_cloud_is_renamed(
    tmp_path: Path, kind: str, other: Mapping[str, object], place: tuple[str, ...]
) -> None:
    (found,) = recorded_world(written(tmp_path, other), kind=kind, speed=1.0).supplies
    assert (found.pool.provider, found.pool.region, found.pool.zone, found.pool.machine_type) == (kind, *place)


def test_a_world_that_names_no_times_keeps_those_of_the_demo(tmp_path: Path) -> None:
    assert recorded_world(written(tmp_path, AWS), kind="aws", speed=20.0).times == USUAL


def test_everything_that_a_world_says_of_time_runs_at_its_speed(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": [1, 0, 1]}))
    head = "notice_s = 120\nunannounced = 0.3\n[boot]\ncold = { median_s = 62, sigma = 0.2, min_s = 40, max_s = 110 }\n"
    path = written(tmp_path, {**AWS, "trace": "t.json", "hazard_per_hour": 0.5, "slots": 10}, head=head)
    world = recorded_world(path, kind="aws", speed=20.0)
    (supply,), now = world.supplies, time.time()
    assert (world.pace.boot_s, world.pace.notice_s, world.unannounced) == ((2.0, 5.5), 6.0, 0.3)
    assert supply.hazard_per_hour == 10.0
    assert [supply.slots_at(now + at) for at in (0, 29, 31, 59, 61)] == [10, 10, 0, 0, 10]


def test_long_boots_are_told_of_with_a_speed_that_makes_them_short() -> None:
    path = require_shared() / "data/scenarios/cpu7/world-seed1.toml"
    what, advice = expectations(recorded_world(path, kind="aws", speed=1.0))
    assert "boot in 40 to 110 s" in what
    assert "--speed 18 " in advice
    assert len(expectations(recorded_world(path, kind="aws", speed=20.0))) == 1


def test_pools_ask_for_what_the_world_has(tmp_path: Path) -> None:
    said: list[str] = []
    world = recorded_world(written(tmp_path, AWS), kind="aws", speed=1.0)
    shapes = {pool.name: shape_in(world, pool, said.append) for pool in STANDARD_POOLS}
    assert shapes["linux-small"] == 'cpus = "4.."\nmemory = "16GiB.."'
    assert shapes["linux-large"] == shapes["data"] == 'cpus = "4.."'
    assert [line.split()[1] for line in said] == ["linux-large", "data"]


@pytest.mark.parametrize("small", [{"cpus": 2}, {"arch": "arm64"}, {"gpus": 1}])
def test_a_pool_that_nothing_fits_is_named(tmp_path: Path, small: Mapping[str, object]) -> None:
    world = recorded_world(written(tmp_path, {**AWS, **small}), kind="aws", speed=1.0)
    with pytest.raises(DemoError, match=r"world\.toml fits the pool linux-small: it needs"):
        shape_in(world, STANDARD_POOLS[0], lambda _: None)


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ([], "has no capacity pools"),
        ([{**AWS, "cpus": "many"}], r"capacity_pool\[0\]"),
        ([{**AWS, "zone": "b"}], "as aws names them, as in us-east-1 and us-east-1a"),
        ([{**AWS, "trace": "gone.json"}], "gone.json"),
    ],
)
def test_a_world_that_cannot_be_says_what_is_wrong(
    tmp_path: Path, pools: list[Mapping[str, object]], problem: str
) -> None:
    with pytest.raises(DemoError, match=problem):
        recorded_world(written(tmp_path, *pools), kind="aws", speed=1.0)


def test_the_command_says_in_one_line_why_a_world_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = written(tmp_path, {**AWS, "cpus": 2})
    assert main(["demo", "--provider", "aws", "--world", str(small)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "autoscaler demo: --world: nothing in world.toml fits the pool linux-small" in captured.err


@pytest.mark.parametrize("speed", [1.0, 3.0, 20.0, 23.7])
def test_a_played_series_steps_on_for_ever(speed: float) -> None:
    """At any speed, epoch seconds are rounded: no step may come twice, or never."""
    now = 1_790_000_000.123
    series = Series(values=(1.0, 2.0, 3.0), gap_s=34.0, offset_s=350_914.0).played(now, speed=speed)
    at, ends = now, now + 1000 * 34.0 / speed
    steps = []
    while (at := series.next_step(at)) < ends:
        steps.append(at)
    assert 999 <= len(steps) <= 1001
    assert len(series.between(now, ends)) - 1 in (999, 1000, 1001)
