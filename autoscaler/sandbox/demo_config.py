"""The demo's own configuration: both forges at the sandbox, the local provider, three pools."""

import json
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.demo_workload import Submission

IMAGES = Path(__file__).parent / "images"
PRICES = {"small": 0.0684, "large": 0.1368, "data": 0.0712}


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
    machine_type: str
    max: int


STANDARD_POOLS = (
    DemoPool(
        name="linux-small",
        forge="github",
        repos=("acme/*",),
        labels=("self-hosted", "linux", "x64"),
        machine_type="m.small",
        max=12,
    ),
    DemoPool(
        name="linux-large",
        forge="github",
        repos=("acme/shop",),
        labels=("self-hosted", "linux", "x64", "large"),
        machine_type="m.large",
        max=4,
    ),
    DemoPool(name="data", forge="gitlab", repos=("tools/*",), labels=("data", "linux"), machine_type="c.data", max=8),
)


def pools_for(submissions: list[Submission]) -> tuple[DemoPool, ...]:
    """The standard pools for the generated workload; one pool per forge and label set for a replayed trace."""
    found: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for one in submissions:
        for job in one.run.jobs:
            labels = tuple(sorted({label.lower() for label in job.labels}))
            found.setdefault((one.forge, labels), set()).add(one.run.repo.split("/")[0] + "/*")
    return tuple(
        DemoPool(
            name=f"trace-{forge}-{number}",
            forge=forge,
            repos=tuple(sorted(repos)),
            labels=labels or ("untagged",),
            machine_type="m.small",
            max=12,
        )
        for number, ((forge, labels), repos) in enumerate(sorted(found.items()))
    )


def write_config(
    folder: Path,
    *,
    addresses: DemoAddresses,
    pools: tuple[DemoPool, ...],
    scopes: dict[str, tuple[str, ...]],
    app_id: int,
    private_key: str,
    webhook_secret: str,
    gitlab_token: str,
    slow_share: float,
    store: str,
    seed: int,
) -> Path:
    """Write the configuration and its secret files below `folder`; returns the configuration's path."""
    for name, text in (
        ("github-app.pem", private_key),
        ("webhook-secret", webhook_secret),
        ("gitlab-token", gitlab_token),
    ):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)
    machine_types = {pool.machine_type for pool in pools}
    capacity = ",\n    ".join(_capacity(name) for name in sorted(machine_types))
    public = f"http://127.0.0.1:{addresses.public_port}"
    text = f"""
[autoscaler]
name = "demo"
listen = "127.0.0.1:{addresses.public_port}"
admin_listen = "127.0.0.1:{addresses.admin_port}"
public_url = "{public}"
store = {json.dumps(store or f"sqlite:///{folder / 'autoscaler.db'}")}
tick = "2s"
list_instances = "2s"
list_runners = "10s"

[[forge]]
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

[[provider]]
name = "here"
kind = "local"
state_dir = {json.dumps(str(folder / "machines"))}
keep_ended_s = 30
boot = {{ min_s = 2, max_s = 6 }}
slow_share = {slow_share}
slow_factor = 5
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
    for pool in pools:
        text += f"""
[[pool]]
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
types = ["{pool.machine_type}"]
[pool.wait]
target = "10s"
"""
    path = folder / "config.toml"
    path.write_text(text)
    return path


def _capacity(machine_type: str) -> str:
    size = machine_type.rpartition(".")[2]
    price = PRICES.get(size, PRICES["small"])
    return (
        f'{{ machine_type = "{machine_type}", zone = "here-a", cpus = 4, memory_gib = 16, arch = "x86_64", '
        f"price_usd_hour = {price}, on_demand_price_usd_hour = {round(price * 2.9, 4)}, slots = 32 }}"
    )
