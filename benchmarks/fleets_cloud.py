"""The clouds of `fleets` as their figures speak of them, each running in a process of its own."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import aws_cloud_child, gce_cloud_child
from benchmarks.children import Child
from benchmarks.fleet_rows import store_fleet
from benchmarks.site import Cloud, Secrets, write_config

NO_POLL = "1h"
"""Listings would find jobs before their webhook is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`launches` are the calls that make machines, `launch` and `of` what tables call them and the cloud's other calls;
    `listing` is the call that gives one page of machines."""

    benchmark: str
    child: str
    region: str
    of: str
    sdk: str
    launches: frozenset[str]
    launch: str
    listing: str


AWS = Kind(
    benchmark="fleets-aws",
    child="aws_cloud_child",
    region=aws_cloud_child.REGION,
    of="AWS",
    sdk="boto3",
    launches=frozenset({"CreateFleet"}),
    launch="CreateFleet",
    listing="DescribeInstances",
)
GCE = Kind(
    benchmark="fleets-gce",
    child="gce_cloud_child",
    region=gce_cloud_child.REGION,
    of="Google Cloud",
    sdk="google-cloud-compute",
    launches=frozenset({gce_cloud_child.BULK_INSERT, gce_cloud_child.INSERT}),
    launch="insert and bulkInsert",
    listing=gce_cloud_child.LIST,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCloud:
    """A sandbox's cloud in a process of its own. `secret` and `queue_url` are AWS's."""

    kind: Kind
    child: Child
    url: str
    cloud: Cloud
    secret: str = ""
    queue_url: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)

    async def calls(self) -> list[tuple[float, str, int]]:
        """When (epoch seconds), which, for how many machines."""
        return [(at, name, machines) for at, name, machines in await self.child.call("counted")]

    async def bare(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """A baseline, in a thread."""
        access = (self.url, self.secret) if self.secret else (self.url,)
        return await asyncio.to_thread(work, *access, *arguments, **named)


@contextlib.asynccontextmanager
async def running(kind: Kind) -> AsyncIterator[RunningCloud]:
    with tempfile.TemporaryDirectory(prefix="bench-cloud-") as folder:
        child, ready = await Child.start(kind.child, log=Path(folder) / "log")
        try:
            yield RunningCloud(kind=kind, child=child, **{**ready, "cloud": Cloud(**ready["cloud"])})
        finally:
            await child.stop()


@contextlib.asynccontextmanager
async def knowing_daemon(cloud: RunningCloud, machines: list[dict[str, Any]]) -> AsyncIterator[Child]:
    """A daemon whose store knows the machines. No forge is there: its jobs wait."""
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as name:
        folder = Path(name)
        path = write_config(folder, known=Secrets.fresh(), poll=NO_POLL, cloud=cloud.cloud)
        await store_fleet(path, provider=cloud.cloud.provider, region=cloud.kind.region, machines=machines)
        daemon, _ = await Child.start(
            "fleet_child", log=folder / "log", config_path=str(path), lifted=True, environ=dict(cloud.environ)
        )
        try:
            yield daemon
        finally:
            await daemon.stop()
