"""The demo's own configuration: both forges at the sandbox, the local provider, three pools.

The world is compressed: boots of 2 to 6 s, jobs of 1 to 15 s, a wait target of 10 s; prices are as on AWS.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.demo_forges import ForgeSecrets
from autoscaler.sandbox.demo_workload import LONGEST_S, SHORTEST_S, Submission
from autoscaler.spi import Secret, label_set
from providers.local_isolation import probe

IMAGES = Path(__file__).parent / "images"
DEPLOYMENT = "demo"
BOOT_S = (2, 6)
SLOW_FACTOR = 5
TARGET_S = 10
MAX_INSTANCES = 24
"""What two cores bear; each machine is a handful of processes."""
SLOTS = 32


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
class DemoAddresses:
    github: str
    gitlab: str
    public_port: int
    admin_port: int


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
        labels=("self-hosted", "linux", "x64"),
        machine_type=SMALL,
        max=12,
    ),
    DemoPool(
        name="linux-large",
        forge="github",
        repos=("acme/shop",),
        labels=("self-hosted", "linux", "x64", "large"),
        machine_type=LARGE,
        max=4,
    ),
    DemoPool(
        name="data", forge="gitlab", repos=("tools/*",), labels=("data", "linux"), machine_type=DATA, max=8
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


def world_document(pools: Sequence[DemoPool], *, slow_share: float) -> dict[str, object]:
    """The world as the report shows it."""
    types = {pool.machine_type.name: pool.machine_type for pool in pools}
    return {
        "provider": "local",
        "boot_cold_s": list(BOOT_S),
        "slow_boot": {"share": slow_share, "factor": SLOW_FACTOR},
        "job_s": [SHORTEST_S, LONGEST_S],
        "max_instances": MAX_INSTANCES,
        "capacity_pools": [
            {
                "machine_type": one.name,
                "cpus": one.cpus,
                "memory_gib": one.memory_gib,
                "slots": SLOTS,
                "spot_usd_hour": one.spot_usd_hour,
                "on_demand_usd_hour": one.on_demand_usd_hour,
            }
            for one in types.values()
        ],
        "pools": [
            {
                "name": pool.name,
                "forge": pool.forge,
                "repos": list(pool.repos),
                "labels": list(pool.labels),
                "max": pool.max,
                "target_s": TARGET_S,
            }
            for pool in pools
        ],
    }


def write_config(
    folder: Path,
    *,
    addresses: DemoAddresses,
    pools: Sequence[DemoPool],
    scopes: dict[str, tuple[str, ...]],
    secrets: ForgeSecrets,
    admin_token: Secret,
    slow_share: float,
    store: str,
    seed: int,
    isolation: str = "auto",
) -> Path:
    """Write the configuration and its secret files below `folder`; returns the configuration's path."""
    for name, text in (
        ("github-app.pem", secrets.private_key),
        ("webhook-secret", secrets.webhook_secret),
        ("gitlab-token", secrets.gitlab_token),
        ("admin-token", admin_token.reveal()),
    ):
        _write_private(folder / name, text)
    sections = [
        _autoscaler_section(addresses, store),
        _forge_sections(addresses, scopes, secrets.app_id),
        _provider_section(folder, pools, slow_share, seed, isolation),
        *(_pool_section(pool) for pool in pools),
    ]
    path = folder / "config.toml"
    _write_private(path, "\n".join(sections))  # a store's URL may carry a password
    return path


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _autoscaler_section(addresses: DemoAddresses, store: str) -> str:
    return f"""[autoscaler]
name = "{DEPLOYMENT}"
listen = "127.0.0.1:{addresses.public_port}"
admin_listen = "127.0.0.1:{addresses.admin_port}"
admin_tokens = [{{ file = "admin-token" }}]
public_url = "http://127.0.0.1:{addresses.public_port}"
store = {json.dumps(store)}
tick = "2s"
list_instances = "2s"
list_runners = "5s"
[autoscaler.caps]
instances = {MAX_INSTANCES}
"""


def _forge_sections(addresses: DemoAddresses, scopes: dict[str, tuple[str, ...]], app_id: int) -> str:
    return f"""[[forge]]
name = "github"
kind = "github"
url = "{addresses.github}"
api_url = "{addresses.github}"
credentials = {{ app_id = {app_id}, private_key = {{ file = "github-app.pem" }} }}
webhook_secret = {{ file = "webhook-secret" }}
scopes = {json.dumps(scopes["github"])}
poll = "5s"

[[forge]]
name = "gitlab"
kind = "gitlab"
url = "{addresses.gitlab}"
credentials = {{ token = {{ file = "gitlab-token" }} }}
webhook_secret = {{ file = "webhook-secret" }}
scopes = {json.dumps(scopes["gitlab"])}
poll = "5s"
"""


def choose_isolation(folder: Path) -> str:
    """ "auto"; "process" where that finds nothing. The demo's jobs are the demo's own, and so are the daemon's secrets
    that they could read then: nobody has to be kept from anything. Blocking, some 10 ms."""
    try:
        probe(folder, "auto")
    except OSError:
        return "process"
    return "auto"


def _provider_section(folder: Path, pools: Sequence[DemoPool], slow_share: float, seed: int, isolation: str) -> str:
    types = {pool.machine_type.name: pool.machine_type for pool in pools}
    capacity = ",\n    ".join(
        f'{{ machine_type = "{one.name}", zone = "here-a", cpus = {one.cpus}, memory_gib = {one.memory_gib}, '
        f'arch = "x86_64", price_usd_hour = {one.spot_usd_hour}, '
        f"on_demand_price_usd_hour = {one.on_demand_usd_hour}, slots = {SLOTS} }}"
        for one in types.values()
    )
    return f"""[[provider]]
name = "here"
kind = "local"
state_dir = {json.dumps(str(folder / "machines"))}
isolation = "{isolation}"
keep_ended_s = 30
boot = {{ min_s = {BOOT_S[0]}, max_s = {BOOT_S[1]} }}
slow_share = {slow_share}
slow_factor = {SLOW_FACTOR}
seed = {seed}
capacity_pools = [
    {capacity},
]

[[image]]
name = "runner"
[image.references.local]
github_runner = {json.dumps(str(IMAGES / "actions-runner"))}
gitlab_runner = {json.dumps(str(IMAGES / "gitlab-runner" / "gitlab-runner"))}
"""


def _pool_section(pool: DemoPool) -> str:
    return f"""[[pool]]
name = "{pool.name}"
forges = ["{pool.forge}"]
repos = {json.dumps(pool.repos)}
labels = {json.dumps(pool.labels)}
image = "runner"
providers = ["here"]
max = {pool.max}
idle_timeout = "4s"
boot_timeout = "60s"
max_job_runtime = "10m"
[pool.shape]
types = ["{pool.machine_type.name}"]
[pool.wait]
target = "{TARGET_S}s"
"""
