"""The configuration that every benchmark uses: one pool for each forge, or many; the real adapters, the null provider.

The provider section says `local`, because configuration names installed kinds only; the daemon of a benchmark puts
`NullProvider` in its place, except where the real daemon is what is measured. `fleets` puts a cloud there.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.calls import Calls
from autoscaler.config import Config
from autoscaler.core import runner_prefix
from autoscaler.plugins import make_forges
from autoscaler.spi import Clock, Forge, ForgeName, Surroundings

GITHUB_LABELS = ("linux", "self-hosted", "x64")
GITLAB_LABELS = ("data", "linux")
GITHUB_REPO = "acme/shop"
GITLAB_REPO = "tools/etl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Made anew for each run."""

    webhook: str
    token: str

    @classmethod
    def fresh(cls) -> "Secrets":
        return cls(webhook=secrets.token_urlsafe(24), token="glpat-" + secrets.token_urlsafe(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    name: str
    forge: str
    repo: str
    labels: tuple[str, ...]


STANDARD_POOLS = (
    Pool(name="linux", forge="github", repo="acme/*", labels=GITHUB_LABELS),
    Pool(name="data", forge="gitlab", repo="tools/*", labels=GITLAB_LABELS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """Where a benchmark's machines run: the sections of its provider and image, and more lines for each pool."""

    provider: str
    sections: str
    pool_lines: str = ""


def local_machines(folder: Path) -> Cloud:
    return Cloud(
        provider="here",
        sections=f"""
[[provider]]
name = "here"
kind = "local"
state_dir = {json.dumps(str(folder / "machines"))}

[[image]]
name = "runner"
[image.references.local]
github_runner = "/opt/actions-runner"
gitlab_runner = "/usr/bin/gitlab-runner"
""",
    )


def write_config(
    folder: Path,
    *,
    known: Secrets,
    github_url: str = "http://127.0.0.1:9",
    gitlab_url: str = "http://127.0.0.1:9",
    pools: Sequence[Pool] = STANDARD_POOLS,
    listen: str = "127.0.0.1:0",
    public_url: str = "http://127.0.0.1:9",
    poll: str = "60s",
    cloud: Cloud | None = None,
    pool_lines: str = "",
) -> Path:
    """Write the configuration and its secret files below `folder`; returns the configuration's path."""
    cloud = cloud or local_machines(folder)
    for name, text in (("webhook-secret", known.webhook), ("token", known.token)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)
    text = f"""
[autoscaler]
name = "bench"
listen = "{listen}"
admin_listen = "127.0.0.1:0"
admin_tokens = [{{ file = "token" }}]
public_url = "{public_url}"
store = {json.dumps(f"sqlite:///{folder / 'bench.db'}")}

[[forge]]
name = "github"
kind = "github"
url = "{github_url}"
api_url = "{github_url}"
credentials = {{ token = {{ file = "token" }} }}
webhook_secret = {{ file = "webhook-secret" }}
scopes = ["acme"]
poll = "{poll}"

[[forge]]
name = "gitlab"
kind = "gitlab"
url = "{gitlab_url}"
credentials = {{ token = {{ file = "token" }} }}
webhook_secret = {{ file = "webhook-secret" }}
scopes = ["tools"]
poll = "{poll}"
{cloud.sections}"""
    for pool in pools:
        text += f"""
[[pool]]
name = "{pool.name}"
forges = ["{pool.forge}"]
repos = ["{pool.repo}"]
labels = {json.dumps(pool.labels)}
image = "runner"
providers = ["{cloud.provider}"]
max = 20000
idle_timeout = "20s"
{cloud.pool_lines}
{pool_lines}"""
    path = folder / "config.toml"
    path.write_text(text)
    return path


def make_real_forges(config: Config, clock: Clock, calls: Calls) -> dict[ForgeName, Forge]:
    """The shipped adapters, as the daemon makes them."""
    name = config.autoscaler.name
    surroundings = Surroundings(deployment=name, runner_prefix=runner_prefix(name), clock=clock, gates=calls)
    return dict(make_forges(config, surroundings))
