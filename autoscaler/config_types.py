"""The validated configuration as frozen values: what one `config.toml` means, with every default filled in.

Owns the dataclasses only. Import them from `autoscaler.config`; how the text becomes these values is the business
of `config_schema` (one section at a time) and `config_checks` (across sections). Nothing here reads a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time, timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from autoscaler.spi import (
    ForgeName,
    ForgeSettings,
    Labels,
    PoolName,
    ProviderName,
    ProviderSettings,
    Secret,
    Shape,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a listener binds. Port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files for the public listener; both are read again on reload."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Upper bounds on what lives at one time, and on a day's money. `None` is no bound."""

    usd_per_hour: float | None = None
    usd_per_day: float | None = None
    instances: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerConfig:
    """The `[autoscaler]` section. `name` is the deployment: it tags every machine and starts every runner name.

    `tick`, `list_instances` and `list_runners` are the longest times between two passes of the loop, two listings
    of each provider and two listings of each forge's runners; events wake the loop sooner.
    """

    name: str
    listen: Address
    admin_listen: Address
    public_url: str
    tls: TlsConfig | None = None
    store: str = "sqlite:///autoscaler.db"
    admin_tokens: tuple[Secret, ...] = ()
    retention: timedelta = timedelta(days=30)
    evidence_half_life: timedelta = timedelta(hours=24)
    caps: Caps = Caps()
    chaos: bool = False
    tick: timedelta = timedelta(seconds=10)
    list_instances: timedelta = timedelta(seconds=30)
    list_runners: timedelta = timedelta(seconds=60)
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHooks:
    """Programs inside the image; empty is none. The runner runs two of them around each job, the agent the third when
    the cloud takes a machine whose job still runs, for `on_interruption_limit` at most: None is until it ends the
    runner."""

    job_started: str = ""
    job_completed: str = ""
    on_interruption: str = ""
    on_interruption_limit: timedelta | None = None

    def for_machines(self) -> Mapping[str, str]:
        """As the boot document of docs/agent-protocol.md names them."""
        named = {name: getattr(self, name) for name in ("job_started", "job_completed", "on_interruption")}
        return {f"hook_{name}": path for name, path in named.items() if path}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """One `[[image]]` section. `references` has the provider's own words by provider name or by kind."""

    name: str
    references: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    arch: str = "x86_64"
    prepull: tuple[str, ...] = ()
    freshness: timedelta | None = None
    hooks: ImageHooks = ImageHooks()

    def reference_for(self, provider: ProviderSettings) -> Mapping[str, str] | None:
        """The reference for one provider: the one under its name, else the one under its kind, else `None`."""
        return self.references.get(provider.name) or self.references.get(provider.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitConfig:
    """The promise about queue wait: the given quantile of jobs starts within `target` of being queued."""

    target: timedelta = timedelta(seconds=60)
    quantile: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotConfig:
    """`max_price` is USD per hour; `spread` is the largest share of the pool's live spot instances that one capacity
    pool may hold; `error_budget` is the share of jobs that interruptions may hurt before spot gives way."""

    enabled: bool = True
    max_price: float | None = None
    spread: float = 0.5
    error_budget: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """`margin` is by how much on_demand must lower a job's breach probability to be bought for it."""

    enabled: bool = True
    margin: float = 0.2
    max_usd_per_hour: float | None = None
    max_usd_per_day: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockWindow:
    """Fixed stock during a time of the week. `days` counts Monday as 0; a window with `end` <= `start` goes past
    midnight and belongs to the day it starts on. `timezone` is an IANA name."""

    days: frozenset[int]
    start: time
    end: time
    hot: int
    stopped: int
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class StockConfig:
    """Instances up before there is a job. `forecast` lets history ask for more than `hot`, never for less."""

    hot: int = 0
    stopped: int = 0
    schedule: tuple[StockWindow, ...] = ()
    forecast: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueConfig:
    """`attempts` counts the first one; from attempt `on_demand_from` on, on_demand is used. `mixed_failures`:
    "ride_along" lets genuine failures of the same GitHub run run again with several lost jobs, "wait" never does."""

    enabled: bool = True
    attempts: int = 3
    on_demand_from: int = 3
    opt_out_labels: Labels = ("no-requeue",)
    mixed_failures: str = "ride_along"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """One `[[pool]]` section. Empty `forges` is every forge, empty `repos` every repo of those forges, empty
    `providers` is not allowed. `unservable` is "report" or "cancel_run"."""

    name: PoolName
    image: str
    labels: Labels
    providers: tuple[ProviderName, ...]
    forges: tuple[ForgeName, ...] = ()
    repos: tuple[str, ...] = ()
    runner_group: str = ""
    priority: int = 0
    shape: Shape = field(default_factory=Shape)
    min: int = 0
    max: int = 10
    boot_timeout: timedelta = timedelta(minutes=10)
    idle_timeout: timedelta = timedelta(minutes=2)
    max_job_runtime: timedelta = timedelta(hours=6)
    unservable: str = "report"
    wait: WaitConfig = WaitConfig()
    spot: SpotConfig = SpotConfig()
    spill: SpillConfig = SpillConfig()
    stock: StockConfig = StockConfig()
    requeue: RequeueConfig = RequeueConfig()

    def serves_forge(self, forge: ForgeName) -> bool:
        return not self.forges or forge in self.forges

    def serves_repo(self, repo: str) -> bool:
        """Whether the globs admit a repo ("owner/name"): any glob without "!" matches (or there is none), and no
        glob with "!" does. Case is ignored, as forges do; "*" also matches "/", so "group/*" covers subgroups."""
        wanted = [glob for glob in self.repos if not glob.startswith("!")]
        excluded = [glob[1:] for glob in self.repos if glob.startswith("!")]
        path = repo.lower()
        return (not wanted or any(fnmatchcase(path, glob.lower()) for glob in wanted)) and not any(
            fnmatchcase(path, glob.lower()) for glob in excluded
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration. `key` is the path in the file: "pool[2].wait.target"."""

    file: Path
    key: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}. {self.remedy}"


class ConfigError(Exception):
    """The configuration cannot be used: show `problems` (all of them) and exit 2, or keep the old one on reload."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole valid configuration. `warnings` are problems that do not keep the daemon from running."""

    autoscaler: AutoscalerConfig
    forges: tuple[ForgeSettings, ...]
    providers: tuple[ProviderSettings, ...]
    images: tuple[ImageConfig, ...]
    pools: tuple[PoolConfig, ...]
    source: Path
    provider_caps: Mapping[ProviderName, Caps] = field(default_factory=dict)
    telling_forges: frozenset[ForgeName] = frozenset()
    """Forges where people are told about interruptions at their job (`tell = true`)."""
    warnings: tuple[Problem, ...] = ()

    def image(self, name: str) -> ImageConfig:
        """The image of this name. Raises KeyError; a validated pool's image always exists."""
        for image in self.images:
            if image.name == name:
                return image
        raise KeyError(name)

    def pool(self, name: PoolName) -> PoolConfig:
        """The pool of this name. Raises KeyError."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)
