"""The demo's own configuration: both forges at the sandbox, one provider, and the pools.

The world is compressed: boots of 2 to 6 s, jobs of 1 to 15 s, a wait target of 10 s; prices are as on AWS.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.demo_cloud import IMAGE, SLOW_FACTOR, CloudConfig, DemoCloud, Pace
from autoscaler.sandbox.demo_forges import GITHUB_LEASE_S, GITLAB_SILENT_S, ForgeSecrets
from autoscaler.sandbox.demo_pools import MAX_INSTANCES, DemoPool
from autoscaler.sandbox.demo_workload import LONGEST_S, SHORTEST_S
from autoscaler.spi import Secret

DEPLOYMENT = "demo"
TARGET_S = 10
BOOT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAddresses:
    github: str
    gitlab: str
    public_port: int
    admin_port: int


def world_document(cloud: DemoCloud, pools: Sequence[DemoPool], *, slow_share: float) -> dict[str, object]:
    """The world as the report shows it."""
    return {
        "provider": cloud.kind,
        "boot_cold_s": list(cloud.pace.boot_s),
        "slow_boot": {"share": slow_share, "factor": SLOW_FACTOR},
        "notice_s": cloud.pace.notice_s,
        "forge_gives_up_s": {"github": GITHUB_LEASE_S, "gitlab": GITLAB_SILENT_S},
        "job_s": [SHORTEST_S, LONGEST_S],
        "max_instances": MAX_INSTANCES,
        "capacity_pools": cloud.capacity_pools(pools),
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
    shapes: dict[str, str],
    cloud: CloudConfig,
    scopes: dict[str, tuple[str, ...]],
    secrets: ForgeSecrets,
    admin_token: Secret,
    store: str,
    boot_timeout_s: float,
) -> Path:
    """Write the configuration and its secret files below `folder`; returns the configuration's path. `shapes` are the
    lines of each pool's shape."""
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
        cloud.sections,
        *(_pool_section(pool, cloud.provider, shapes[pool.name], boot_timeout_s) for pool in pools),
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
chaos = true
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


def boot_timeout_s(pace: Pace, *, slow_share: float) -> float:
    """Twice the longest boot, those made slow among them; at least what the demo's own world needs."""
    longest_s = pace.boot_s[1] * (SLOW_FACTOR if slow_share else 1.0)
    return max(BOOT_TIMEOUT_S, math.ceil(2 * longest_s))


def _pool_section(pool: DemoPool, provider: str, shape: str, boot_timeout_s: float) -> str:
    return f"""[[pool]]
name = "{pool.name}"
forges = ["{pool.forge}"]
repos = {json.dumps(pool.repos)}
labels = {json.dumps(pool.labels)}
image = "{IMAGE}"
providers = ["{provider}"]
max = {pool.max}
idle_timeout = "4s"
boot_timeout = "{boot_timeout_s:.0f}s"
max_job_runtime = "10m"
[pool.shape]
{shape}
[pool.wait]
target = "{TARGET_S}s"
"""
