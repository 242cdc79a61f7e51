"""The demo's pools and what their machines are like: three that show how labels and repos choose, or one for each label
set of a replayed trace. Prices are as on AWS."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.sandbox.demo_workload import ONCE, Submission
from autoscaler.spi import label_set

MAX_INSTANCES = 24
"""What two cores bear; each machine is a handful of processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A nominal capacity pool of this host."""

    name: str
    cpus: int
    memory_gib: int
    spot_usd_hour: float
    on_demand_usd_hour: float


SMALL = MachineType(name="m7i.xlarge", cpus=4, memory_gib=16, spot_usd_hour=0.0684, on_demand_usd_hour=0.2016)
LARGE = MachineType(name="m7i.2xlarge", cpus=8, memory_gib=32, spot_usd_hour=0.1411, on_demand_usd_hour=0.4032)
DATA = MachineType(name="r7i.xlarge", cpus=4, memory_gib=32, spot_usd_hour=0.0897, on_demand_usd_hour=0.2646)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPool:
    name: str
    forge: str
    repos: tuple[str, ...]
    labels: tuple[str, ...]
    machine_type: MachineType
    max: int


STANDARD_POOLS = (
    DemoPool(
        name="linux-small",
        forge="github",
        repos=("acme/*",),
        labels=("self-hosted", "linux", "x64", ONCE),
        machine_type=SMALL,
        max=12,
    ),
    DemoPool(
        name="linux-large",
        forge="github",
        repos=("acme/shop",),
        labels=("self-hosted", "linux", "x64", "large", ONCE),
        machine_type=LARGE,
        max=4,
    ),
    DemoPool(
        name="data", forge="gitlab", repos=("tools/*",), labels=("data", "linux", ONCE), machine_type=DATA, max=8
    ),
)  # fmt: skip


def pools_of_trace(submissions: Sequence[Submission]) -> tuple[DemoPool, ...]:
    """One pool for each forge and label set of a replayed trace."""
    found: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for one in submissions:
        for job in one.run.jobs:
            repos = found.setdefault((one.forge, label_set(job.labels)), set())
            repos.add(one.run.repo.split("/")[0] + "/*")
    names: set[str] = set()
    pools = []
    for (forge, labels), repos in sorted(found.items()):
        pools.append(
            DemoPool(
                name=_pool_name(forge, labels, names),
                forge=forge,
                repos=tuple(sorted(repos)),
                labels=labels or ("untagged",),
                machine_type=SMALL,
                max=MAX_INSTANCES,
            )
        )
    return tuple(pools)


def _pool_name(forge: str, labels: tuple[str, ...], taken: set[str]) -> str:
    words = [label for label in labels if label != "self-hosted"] or ["untagged"]
    plain = "-".join("".join(c for c in word if c.isascii() and c.isalnum()) for word in words)
    name = stem = f"{forge}-{plain}".strip("-")[:40].rstrip("-")
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name
