"""The shape of `[[pool]]` and its tables in `config.toml`. The rules of `config_schema` hold here too."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from autoscaler.config_fields import (
    ARCH,
    COUNT,
    DURATION,
    MONEY,
    NAME,
    NAMES,
    SHARE,
    YES_NO,
    Arch,
    Count,
    Counts,
    Days,
    Duration,
    Globs,
    Hours,
    LabelSet,
    Money,
    Name,
    Names,
    Section,
    Share,
    Size,
    Sizes,
    Texts,
    TimeZone,
    listed,
)
from autoscaler.config_types import (
    PoolConfig,
    RequeueConfig,
    SpillConfig,
    SpotConfig,
    StockConfig,
    StockWindow,
    WaitConfig,
)
from autoscaler.spi import Bounds, ForgeName, PoolName, ProviderName, Shape


class ShapeSection(Section):
    cpus: Counts = Field(Bounds(), description='Write a range of CPUs, as in "4..16", "4.." or 8')
    memory: Sizes = Field(
        Bounds(), description='Write a range of sizes in MiB, GiB or TiB, as in "16GiB..64GiB" or "16GiB.."'
    )
    arch: Arch = Field("x86_64", description=ARCH)
    gpu: Count = Field(0, description=COUNT)
    disk: Size = Field(0.0, description='Write a size in MiB, GiB or TiB, as in "100GiB"')
    types: Texts = Field((), description='Write a list of machine type globs, as in ["m7*", "c7i.*"]')
    exclude: Texts = Field((), description='Write a list of machine type globs, as in ["*.metal"]')

    def build(self) -> Shape:
        return Shape(
            cpus=self.cpus,
            memory_gib=self.memory,
            arch=self.arch,
            gpus=self.gpu,
            disk_gib=self.disk,
            types=self.types,
            exclude=self.exclude,
        )


_WAIT = WaitConfig()
_SPOT = SpotConfig()
_SPILL = SpillConfig()
_STOCK = StockConfig()
_REQUEUE = RequeueConfig()
_POOL = PoolConfig(name=PoolName(""), image="", labels=(), providers=())


class WaitSection(Section):
    target: Duration = Field(_WAIT.target, description=DURATION)
    quantile: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        _WAIT.quantile, description="Write a number between 0 and 1, as in 0.95"
    )

    def build(self) -> WaitConfig:
        return self.fill(WaitConfig)


class SpotSection(Section):
    enabled: bool = Field(_SPOT.enabled, description=YES_NO)
    max_price: Money | None = Field(_SPOT.max_price, description=f"{MONEY} (per machine and hour)")
    spread: Annotated[Share, Field(gt=0)] = Field(
        _SPOT.spread,
        description="Write the largest share of spot instances in one capacity pool, above 0 and up to 1",
    )
    error_budget: Share = Field(_SPOT.error_budget, description=SHARE)

    def build(self) -> SpotConfig:
        return self.fill(SpotConfig)


class SpillSection(Section):
    enabled: bool = Field(_SPILL.enabled, description=YES_NO)
    margin: Share = Field(_SPILL.margin, description=SHARE)
    max_usd_per_hour: Money | None = Field(_SPILL.max_usd_per_hour, description=MONEY)
    max_usd_per_day: Money | None = Field(_SPILL.max_usd_per_day, description=MONEY)

    def build(self) -> SpillConfig:
        return self.fill(SpillConfig)


class StockWindowSection(Section):
    days: Days = Field(description='Write days, as in "mon-fri", "sat,sun" or "daily"')
    hours: Hours = Field(description='Write a span of hours, as in "07:00-19:00"')
    timezone: TimeZone = Field("UTC", description='Write an IANA time zone, as in "Europe/Berlin"')
    hot: Count = Field(0, description=COUNT)
    stopped: Count = Field(0, description=COUNT)

    def build(self) -> StockWindow:
        start, end = self.hours
        return StockWindow(
            days=self.days, start=start, end=end, hot=self.hot, stopped=self.stopped, timezone=self.timezone
        )


class StockSection(Section):
    hot: Count = Field(_STOCK.hot, description=COUNT)
    stopped: Count = Field(_STOCK.stopped, description=COUNT)
    schedule: Annotated[tuple[StockWindowSection, ...], BeforeValidator(listed)] = Field(
        (), description='Write a list of tables, as in [{ days = "mon-fri", hours = "07:00-19:00", hot = 4 }]'
    )
    forecast: bool = Field(_STOCK.forecast, description=YES_NO)

    def build(self) -> StockConfig:
        return self.fill(StockConfig, schedule=tuple(window.build() for window in self.schedule))


class RequeueSection(Section):
    enabled: bool = Field(_REQUEUE.enabled, description=YES_NO)
    attempts: Annotated[int, Field(ge=1)] = Field(
        _REQUEUE.attempts, description="Write a whole number, 1 or more; the first attempt counts"
    )
    on_demand_from: Annotated[int, Field(ge=1)] = Field(
        _REQUEUE.on_demand_from, description="Write the number of the first attempt that runs on on_demand, 1 or more"
    )
    opt_out_labels: LabelSet = Field(_REQUEUE.opt_out_labels, description='List labels, as in ["no-requeue"]')
    mixed_failures: Literal["ride_along", "wait"] = Field("ride_along", description='Write "ride_along" or "wait"')

    def build(self) -> RequeueConfig:
        return self.fill(RequeueConfig)


def _section(kind: str) -> str:
    return f"Write a table, as in [pool.{kind}]"


class PoolSection(Section):
    name: Name = Field(description=NAME)
    forges: Names = Field((), description=f"{NAMES}, of [[forge]] sections; leave the key out for all of them")
    repos: Globs = Field(
        (), description='Write a list of globs "owner/repo", with "!" for exclusions, as in ["org/*", "!org/secret"]'
    )
    labels: LabelSet = Field(min_length=1, description='List at least one label, as in ["self-hosted", "linux"]')
    runner_group: str = Field(_POOL.runner_group, description="Name a GitHub runner group, or leave the key out")
    priority: int = Field(_POOL.priority, description="Write a whole number; among equally good pools the highest wins")
    image: Name = Field(description="Write the name of an [[image]] section")
    providers: Names = Field(min_length=1, description=f"{NAMES}, of at least one [[provider]] section")
    shape: ShapeSection = Field(ShapeSection(), description=_section("shape"))
    min: Count = Field(_POOL.min, description=COUNT)
    max: Annotated[int, Field(ge=1)] = Field(_POOL.max, description="Write a whole number, 1 or more, not below min")
    boot_timeout: Duration = Field(_POOL.boot_timeout, description=DURATION)
    idle_timeout: Duration = Field(_POOL.idle_timeout, description=DURATION)
    max_job_runtime: Duration = Field(_POOL.max_job_runtime, description=DURATION)
    unservable: Literal["report", "cancel_run"] = Field("report", description='Write "report" or "cancel_run"')
    wait: WaitSection = Field(WaitSection(), description=_section("wait"))
    spot: SpotSection = Field(SpotSection(), description=_section("spot"))
    spill: SpillSection = Field(SpillSection(), description=_section("spill"))
    stock: StockSection = Field(StockSection(), description=_section("stock"))
    requeue: RequeueSection = Field(RequeueSection(), description=_section("requeue"))

    def build(self) -> PoolConfig:
        tables: dict[str, Any] = {
            name: getattr(self, name).build() for name in ("shape", "wait", "spot", "spill", "stock", "requeue")
        }
        return self.fill(
            PoolConfig,
            name=PoolName(self.name),
            forges=tuple(ForgeName(name) for name in self.forges),
            providers=tuple(ProviderName(name) for name in self.providers),
            **tables,
        )
