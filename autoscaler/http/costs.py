"""GET /api/v1/costs: what machines cost in a period, by use, pool, repo, workflow and day, as JSON or CSV.

Machines that ended come from the store's cost lines, live ones from their rows as if they ended now. Savings compare
with the same time on demand; lost work has no such price, since on demand it would not have been lost.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import groupby

from autoscaler.http.documents import Document, instant
from autoscaler.http.view import DaemonView
from autoscaler.model import CostLine, Instance, JobState, Use
from autoscaler.money import NANO, accrued, cost_lines
from autoscaler.spi import ProviderTraits
from autoscaler.store import CostSum

GROUPS = ("pool", "provider", "capacity_type", "repo", "workflow", "day")
LONGEST = timedelta(days=400)
_NO_TRAITS = ProviderTraits()
_OVERHEAD = "(no job)"
"""Machines that never served a job: stock, and what was launched in vain."""


class BadPeriod(ValueError):
    """since and until make no period; the text says what to write."""


def period_of(since: str, until: str, now: datetime) -> tuple[datetime, datetime]:
    """The asked period, from midnight UTC until now by default. Days or instants, as "2026-11-26". Raises BadPeriod."""
    begin = _moment(since, "since") if since else datetime.combine(now.date(), time(), tzinfo=UTC)
    end = _moment(until, "until") if until else now + timedelta(microseconds=1)
    if not timedelta(0) < end - begin <= LONGEST:
        raise BadPeriod(f"until must be after since, by at most {LONGEST.days} days")
    return begin, end


def _moment(text: str, key: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadPeriod(f'{key}: a day or an instant, as "2026-11-26" or "2026-11-26T08:00:00Z"') from None


async def sums_of(view: DaemonView, since: datetime, until: datetime) -> list[CostSum]:
    """Ended machines of the period and, where it reaches until now, live ones as far as they are."""
    now = view.now()
    ended = await view.store.costs(since, until)
    if not since <= now < until:
        return list(ended)
    return [*ended, *map(_sum_of, _so_far(view, now))]


def _so_far(view: DaemonView, now: datetime) -> Iterator[CostLine]:
    snapshot, traits = view.snapshot(), view.traits()
    for row in snapshot.instances.values():
        job = snapshot.jobs.get(row.job) if row.job is not None else None
        is_lost = job is not None and job.state is JobState.LOST
        for line in cost_lines(accrued(row, now), traits.get(row.provider, _NO_TRAITS), now):
            yield replace(line, use=Use.LOST) if is_lost and line.use is Use.JOB else line


def _sum_of(line: CostLine) -> CostSum:
    return CostSum(
        day=f"{line.ended_at:%Y-%m-%d}",
        provider=line.provider,
        pool=line.pool,
        capacity_type=line.capacity_type,
        repo=line.repo,
        workflow=line.workflow,
        use=line.use,
        instances=1,
        milliseconds=line.milliseconds,
        usd_nano=line.usd_nano,
        on_demand_usd_nano=line.on_demand_usd_nano,
    )


async def costs_document(view: DaemonView, since: datetime, until: datetime) -> Document:
    """Totals of the period and each grouping, dearest first; what lives now; the caps."""
    sums = await sums_of(view, since, until)
    snapshot, caps, now = view.snapshot(), view.rules().caps, view.now()
    return {
        "now": instant(now),
        "since": instant(since),
        "until": instant(until),
        "includes_live": since <= now < until,
        "total": _money(sums),
        **{f"by_{group}": _grouped(sums, group) for group in GROUPS},
        "ended_today": [
            {"provider": provider, "usd": usd} for provider, usd in sorted(snapshot.spent_today_usd.items())
        ],
        "live": _live(snapshot.instances.values(), now),
        "caps": {"usd_per_hour": caps.usd_per_hour, "usd_per_day": caps.usd_per_day},
    }


def _grouped(sums: Sequence[CostSum], group: str) -> list[Document]:
    def value(one: CostSum) -> str:
        return str(getattr(one, group)) or _OVERHEAD

    found = [{"name": name, **_money(list(members))} for name, members in groupby(sorted(sums, key=value), key=value)]
    return sorted(found, key=lambda one: (-one["usd"], one["name"]))


def _money(sums: Sequence[CostSum]) -> Document:
    """All uses add up to `usd`, to the last nano-dollar."""
    by_use = {use: sum(one.usd_nano for one in sums if one.use is use) for use in Use}
    paid = sum(by_use.values())
    on_demand = sum(one.on_demand_usd_nano for one in sums if one.use is not Use.LOST)
    return {
        "usd": paid / NANO,
        "usd_by_use": {use.value: nano / NANO for use, nano in by_use.items()},
        "hours_by_use": {use.value: sum(one.milliseconds for one in sums if one.use is use) / 3_600_000 for use in Use},
        "on_demand_equivalent_usd": on_demand / NANO,
        "savings_usd": (on_demand - paid) / NANO,
    }


def _live(rows: Iterable[Instance], now: datetime) -> list[Document]:
    pools: dict[str, list[Instance]] = {}
    for row in rows:
        pools.setdefault(row.pool, []).append(row)
    return [
        {
            "pool": pool,
            "instances": len(members),
            "usd_per_hour": math.fsum(row.price_usd_hour for row in members),
            "usd_so_far": math.fsum(
                row.price_usd_hour * (now - row.created_at).total_seconds() / 3600 for row in members
            ),
        }
        for pool, members in sorted(pools.items())
    ]


COLUMNS = (
    *("day", "provider", "pool", "capacity_type", "repo", "workflow", "use"),
    *("instances", "seconds", "usd", "on_demand_equivalent_usd"),
)


def costs_csv(sums: Iterable[CostSum]) -> str:
    """One line per sum, with a header. Texts that a spreadsheet would take for a formula are quoted with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for one in sums:
        texts = (one.day, one.provider, one.pool, one.capacity_type.value, one.repo, one.workflow, one.use.value)
        writer.writerow(
            (
                *(f"'{text}" if text[:1] in "=+-@\t\r" and text else text for text in texts),
                one.instances,
                f"{one.milliseconds / 1000:.3f}",
                f"{one.usd_nano / NANO:.9f}",
                f"{one.on_demand_usd_nano / NANO:.9f}",
            )
        )
    return out.getvalue()
