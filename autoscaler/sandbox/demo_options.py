"""What `autoscaler demo` was asked to do: its options, checked before anything starts."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FAULTS = {
    "crash": "kill -9 of the daemon, per minute",
    "lost_webhook": "share of webhooks never sent",
    "forge_error": "share of forge calls answered 5xx",
    "slow_boot": "share of boots that take 5x",
    "reclaim": "share of started jobs whose machine is reclaimed while they run",
    "no_notice": "share of those reclaims without a notice",
    "refuse": "share of spot launches refused",
}
CLOUD_FAULTS = {
    "throttle": "share of cloud calls throttled",
    "lost_answer": "share of cloud writes that take effect but are never answered",
}
"""Faults of calls to a cloud: the local provider makes none."""
PROVIDERS = ("local", "aws", "gce")


class DemoError(Exception):
    """The demo cannot start as asked; the text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """`provider` is where machines come from, `world` a file that says what there is of them; `faults` by name; `trace`
    is a job trace to replay. Both run `speed` times as fast as they say. `keep` gets the logs and the store."""

    provider: str
    world: Path | None
    duration_s: float
    faults: Mapping[str, float]
    trace: Path | None
    speed: float
    seed: int
    store: str
    keep: Path | None
    is_json: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> "DemoOptions":
        """Raises DemoError."""
        for name in ("duration", "speed"):
            value = getattr(options, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DemoError(f"--{name} must be a number above 0")
        if options.speed is not None and options.jobs is None and options.world is None:
            raise DemoError(
                "--speed goes with --jobs TRACE or --world FILE: the demo's own workload and world have a speed of "
                "their own"
            )
        if options.world is not None and options.provider == "local":
            raise DemoError("--world FILE goes with --provider aws or gce: local machines are what this host has")
        if options.store and not options.store.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise DemoError("--store must be sqlite:///path or postgresql://user@host/database")
        return cls(
            provider=options.provider,
            world=options.world,
            duration_s=options.duration,
            faults=parse_faults(options.faults, options.provider),
            trace=options.jobs,
            speed=options.speed or 1.0,
            seed=options.seed,
            store=options.store,
            keep=options.keep,
            is_json=options.json,
        )


def parse_faults(text: str, provider: str = "local") -> dict[str, float]:
    """NAME=VALUE,... Raises DemoError naming the part that is wrong and what there is."""
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name in CLOUD_FAULTS and provider == "local":
            raise DemoError(f"--faults {name}: only a cloud can do that, and the local provider is none; {_known()}")
        if name not in FAULTS and name not in CLOUD_FAULTS:
            raise DemoError(f"--faults {name}: there is no such fault; {_known()}")
        if name in found:
            raise DemoError(f"--faults {name}: given twice")
        try:
            value = float(number) if equals else math.nan
        except ValueError:
            value = math.nan
        limit = math.inf if name == "crash" else 1.0
        if not (math.isfinite(value) and 0 <= value <= limit):
            allowed = "a number per minute, 0 or more" if name == "crash" else "a share from 0 to 1"
            raise DemoError(f"--faults {part}: write {name}=VALUE with {allowed}")
        found[name] = value
    return found


def _known() -> str:
    here = "; ".join(f"{name}: {meaning}" for name, meaning in FAULTS.items())
    there = "; ".join(f"{name}: {meaning}" for name, meaning in CLOUD_FAULTS.items())
    return f"there are {here}; with --provider aws or gce also {there}"
