"""Where the demo's machines come from: the local provider, or a cloud of the sandbox behind the real adapter.

Owns the seam only: what each kind writes into the configuration, what the daemon's environment needs, how a machine is
reclaimed, and what the report says of the world. `demo_cloud_local` is the local one, `demo_cloud_aws` and
`demo_cloud_gce` start a world with its faces; each is imported when it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autoscaler.sandbox.demo_pools import DemoPool
from autoscaler.spi import ProviderId

if TYPE_CHECKING:  # the sandbox's clouds are imported when they are asked for
    from autoscaler.sandbox.demo_world_file import CloudWorld

IMAGES = Path(__file__).parent / "images"
BOOT_S = (2.0, 6.0)
SLOW_FACTOR = 5.0
NOTICE_S = 6.0
SLOTS = 32
IMAGE = "runner"
RUNNERS: Mapping[str, str] = {
    "github_runner": str(IMAGES / "actions-runner"),
    "gitlab_runner": str(IMAGES / "gitlab-runner" / "gitlab-runner"),
}
"""The stand-ins for the runner programs, as an image's references."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudFaultShares:
    """Shares from 0 to 1. See the table of faults in docs: each is committed by the cloud's side."""

    refuse: float = 0.0
    throttle: float = 0.0
    lost_answer: float = 0.0
    slow_boot: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a world is: its shortest and longest cold boot, and how long before a reclaim its notice comes."""

    boot_s: tuple[float, float] = BOOT_S
    notice_s: float = NOTICE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudConfig:
    """What a kind of cloud adds to the demo's configuration. `provider` is its name, `sections` TOML text with the
    provider and the image, `environ` what the daemon and the demo's own adapter need."""

    provider: str
    sections: str
    environ: Mapping[str, str] = field(default_factory=dict)


class DemoCloud(Protocol):
    """One cloud of one demo. `start` first, `aclose` last; nothing is left behind then."""

    kind: str
    pace: Pace

    async def start(
        self, folder: Path, pools: Sequence[DemoPool], *, faults: CloudFaultShares, seed: int
    ) -> CloudConfig:
        """Bring it up. Everything it makes is below `folder`."""
        ...

    def shape_of(self, pool: DemoPool) -> str:
        """The pool's `[pool.shape]` as TOML lines. Raises DemoError where nothing fits it."""
        ...

    def capacity_pools(self, pools: Sequence[DemoPool]) -> list[dict[str, object]]:
        """What the report's world says of them."""
        ...

    async def reclaim(self, machine: ProviderId, *, notice_s: float) -> None:
        """Take a machine; 0 gives no notice. One that is gone already is fine."""
        ...

    def end_faults(self) -> None: ...

    async def aclose(self) -> None: ...


def cloud_of(kind: str, deployment: str, say: Callable[[str], None], *, world: "CloudWorld | None" = None) -> DemoCloud:
    """The cloud of `--provider`, for one deployment; `world` is what there is of it, if not the demo's own. `say` hears
    what a person should know."""
    match kind:
        case "aws":
            from autoscaler.sandbox.demo_cloud_aws import AwsCloud

            return AwsCloud(deployment, say, world)
        case "gce":
            from autoscaler.sandbox.demo_cloud_gce import GceCloud

            return GceCloud(deployment, say, world)
        case _:
            from autoscaler.sandbox.demo_cloud_local import LocalCloud

            return LocalCloud(deployment, say)
