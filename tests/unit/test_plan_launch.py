"""Where launches go: spot spread over capacity pools, on_demand with its reason only, within caps, in few calls."""

import math
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.cooling import place_of
from autoscaler.model import Caps, Cooldown, Instance, Launch, Plan, Pool, ScopeCooldown, Snapshot, throttle_key
from autoscaler.placement import FEW, NEAR
from autoscaler.spi import BatchToken, CapacityPool, CapacityScope, CapacityType, Offering, ProviderName
from tests.admin_world import GITHUB, LINUX, OFFERING, SPOT, pool, rules_of
from tests.unit.plan_world import NOW, POOL, S, actions_of, forge, machine, planned, queued, world

AWS, GCE = ProviderName("aws"), ProviderName("gce")
ZONES = ("a", "b", "c")
PLENTY = {"forges": {GITHUB: forge(registrations_left=5000)}}
WIDE = replace(POOL, max=5000)


def offering(zone: str, price: float = 0.04, *, word: CapacityType = CapacityType.SPOT, **changes: Any) -> Offering:
    place = replace(SPOT, zone=f"eu-central-1{zone}", capacity_type=word, **changes)
    return replace(OFFERING, capacity_pool=place, price_usd_hour=price, on_demand_usd_hour=0.1)


SPOTS = tuple(offering(zone, 0.04 + number / 1000) for number, zone in enumerate(ZONES))
BOUGHT = tuple(offering(zone, 0.1, word=CapacityType.ON_DEMAND) for zone in ZONES)


def cooling(*offerings: Offering, seconds: float = 30, reason: str = "no capacity") -> dict[CapacityPool, Cooldown]:
    until = NOW + timedelta(seconds=seconds)
    return {
        one.capacity_pool: Cooldown(capacity_pool=one.capacity_pool, until=until, failures=1, reason=reason)
        for one in offerings
    }


def jobs(count: int, **changes: Any) -> list[Any]:
    return [queued(number, **changes) for number in range(1, count + 1)]


def launches(made: Plan) -> list[Launch]:
    return actions_of(made, Launch)


def with_offerings(*offerings: Offering, **changes: Any) -> dict[str, Any]:
    return {"offerings": {LINUX: offerings}, **PLENTY, **changes}


# ---------------------------------------------------------------------- spread


def test_a_large_launch_is_spread_so_that_no_capacity_pool_can_get_more_than_its_share() -> None:
    made = launches(planned(world(jobs(60), **with_offerings(*SPOTS)), WIDE))
    assert sum(one.count for one in made) == 60
    places = [{o.capacity_pool for o in one.offerings} for one in made]
    assert max(one.count for one in made) == 30
    assert sum(len(one) for one in places) == len(set.union(*places)), "parts share no capacity pool"


def test_what_lives_counts_for_the_spread() -> None:
    standing = [machine(number, S.BUSY, capacity_pool=SPOTS[0].capacity_pool, seconds=999) for number in range(20)]
    (made,) = launches(planned(world(jobs(5), standing, **with_offerings(*SPOTS)), WIDE))
    assert SPOTS[0] not in made.offerings
    assert made.count == 5


def test_the_first_machines_are_never_held_up_by_the_spread() -> None:
    (made,) = launches(planned(world(jobs(FEW), **with_offerings(SPOTS[0])), WIDE))
    assert (made.count, made.reason) == (FEW, f"{FEW} queued jobs have no machine")


def test_what_a_cap_leaves_is_used_where_the_spread_cannot_be_kept() -> None:
    """The cap cut what was wanted, and the one capacity pool held its share already: nothing was launched at all."""
    machines = [machine(number, S.BUSY, job=queued(900 + number).id) for number in range(6)]
    made = planned(world([queued(1), queued(2)], machines), replace(POOL, max=7))
    assert [one.count for one in actions_of(made, Launch)] == [1]


def test_with_too_few_capacity_pools_the_spread_gives_way_and_says_so() -> None:
    dry = with_offerings(*SPOTS, cooldowns=cooling(*SPOTS[1:]))
    (made,) = launches(planned(world(jobs(60), **dry), WIDE))
    assert (made.count, made.offerings) == (60, (SPOTS[0],))
    assert made.reason.endswith("spread 0.5 is passed: too few capacity pools are open")
    (made,) = launches(planned(world(jobs(60), **with_offerings(SPOTS[0])), WIDE))
    assert (made.count, made.reason) == (60, "60 queued jobs have no machine"), "nothing to spread over, ever"


def test_a_dearer_capacity_pool_keeps_the_spread_and_a_silly_one_does_not() -> None:
    dear, silly = offering("b", 0.07), offering("c", 0.099)
    made = launches(planned(world(jobs(40), **with_offerings(SPOTS[0], dear, silly)), WIDE))
    assert [(one.count, one.offerings) for one in made] == [(20, (SPOTS[0],)), (20, (dear,))]


# ---------------------------------------------------------------------- on_demand


def test_on_demand_stands_in_when_every_spot_capacity_pool_refuses() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS))
    (made,) = launches(planned(world(jobs(3), **dry), WIDE))
    assert {o.capacity_pool.capacity_type for o in made.offerings} == {CapacityType.ON_DEMAND}
    assert made.reason == (
        "3 queued jobs have no machine; on_demand because all 3 spot capacity pools refuse: no capacity; "
        "predicted breach 1.00 on spot, 1.00 on demand, target 60 s, margin 0.2"
    )
    assert made.spill == "refused"
    assert (made.breach_spot, made.breach_on_demand) == (1.0, pytest.approx(1.0))


def test_min_alone_waits_for_spot() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS))
    made = planned(world(**dry), replace(WIDE, min=3))
    assert made.actions == ()
    assert made.wake_at == NOW + timedelta(seconds=30)
    made = planned(world(jobs(1), **dry), replace(WIDE, min=3))
    assert [one.count for one in launches(made)] == [1]


def test_spot_is_back_as_soon_as_one_cooldown_ends() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS[:2], seconds=30) | cooling(SPOTS[2], seconds=9))
    snapshot = world(jobs(3), **dry)
    assert launches(planned(snapshot, WIDE))[0].spill == "refused"
    (later,) = launches(planned(snapshot, WIDE, now=NOW + timedelta(seconds=9)))
    assert (later.offerings, later.spill) == ((SPOTS[2],), "")


def test_a_spot_quota_sends_the_region_to_on_demand_at_once() -> None:
    scope = CapacityScope(region="eu-central-1", capacity_type=CapacityType.SPOT)
    until = NOW + timedelta(seconds=30)
    quota = ScopeCooldown(provider=AWS, scope=scope, until=until, failures=1, reason="32 spot vCPUs")
    (made,) = launches(planned(world(jobs(1), **with_offerings(*SPOTS, *BOUGHT, scope_cooldowns=(quota,))), WIDE))
    assert made.spill == "quota"
    assert "all 3 spot capacity pools are over a quota: 32 spot vCPUs" in made.reason


def test_spot_dearer_than_on_demand_is_not_taken() -> None:
    silly = offering("a", 0.12)
    (made,) = launches(planned(world(jobs(1), **with_offerings(silly, *BOUGHT)), WIDE))
    assert (made.offerings, made.spill) == (BOUGHT, "dear")
    (made,) = launches(planned(world(jobs(1), **with_offerings(silly, *BOUGHT)), replace(WIDE, spill_enabled=False)))
    assert made.offerings == (silly,), "without spill there is nothing to compare with"


def test_without_spill_jobs_wait_for_spot_and_are_told_so() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS, seconds=9))
    made = planned(world(jobs(1), **dry), replace(WIDE, spill_enabled=False))
    assert made.actions == ()
    assert made.blocked[0].reason == "all 3 spot capacity pools refuse: no capacity; the next try is in 9 s"
    assert made.wake_at == NOW + timedelta(seconds=9)


def test_a_pause_of_seconds_is_no_reason_to_pay_more() -> None:
    paused = with_offerings(*SPOTS, *BOUGHT, retry_after={throttle_key(AWS): NOW + timedelta(seconds=2)})
    made = planned(world(jobs(1), **paused), WIDE)
    assert made.actions == ()
    assert made.blocked[0].reason == "aws asks for fewer calls; tried again in 2 s"


def test_a_provider_that_asks_for_a_long_pause_is_out() -> None:
    bought = offering("x", 0.3, provider=GCE, word=CapacityType.ON_DEMAND)
    paused = with_offerings(*SPOTS, bought, retry_after={throttle_key(AWS): NOW + timedelta(minutes=5)})
    (made,) = launches(planned(world(jobs(1), **paused), replace(WIDE, providers=(AWS, GCE))))
    assert made.offerings == (bought,)
    assert "aws asks for fewer calls" in made.reason


def test_another_provider_has_its_turn_while_one_is_paused() -> None:
    google = offering("x", 0.06, provider=GCE)
    paused = with_offerings(*SPOTS, google, retry_after={throttle_key(AWS): NOW + timedelta(seconds=2)})
    (made,) = launches(planned(world(jobs(1), **paused), replace(WIDE, providers=(AWS, GCE))))
    assert made.offerings == (google,)


def test_the_money_for_spill_is_capped_by_itself() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS))
    strict = replace(WIDE, spill_caps=Caps(usd_per_hour=0.35))
    bought = machine(1, S.BUSY, capacity_pool=BOUGHT[0].capacity_pool, price_usd_hour=0.1)
    made = planned(world(jobs(9), [bought], **dry), strict)
    assert sum(one.count for one in launches(made)) == 2
    assert made.blocked[0].reason == "the spill of pool linux reached its cap usd_per_hour"
    daily = replace(WIDE, spill_caps=Caps(usd_per_day=2.0), max_job_runtime=timedelta(hours=1))
    made = planned(world(jobs(90), **dry, on_demand_today_usd={LINUX: 1.5}), daily)
    assert sum(one.count for one in launches(made)) == 5


def test_when_on_demand_is_out_too_both_are_named() -> None:
    dry = with_offerings(*SPOTS, *BOUGHT, cooldowns=cooling(*SPOTS) | cooling(*BOUGHT, seconds=8, reason="none left"))
    made = planned(world(jobs(1), **dry), WIDE)
    assert made.blocked[0].reason == (
        "all 3 spot capacity pools refuse: no capacity, and all 3 on_demand capacity pools refuse: none left; "
        "the next try is in 8 s"
    )


def test_the_third_attempt_of_a_job_runs_on_demand() -> None:
    lost_twice = queued(9, attempt=3)
    made = launches(planned(world([*jobs(2), lost_twice], **with_offerings(*SPOTS, *BOUGHT)), WIDE))
    assert [(one.count, one.spill) for one in made] == [(1, "attempt"), (2, "")]
    assert "on_demand from attempt 3 on" in made[0].reason


def test_a_pool_without_spot_is_on_demand_and_no_spill() -> None:
    base = replace(WIDE, spot_enabled=False, spill_caps=Caps(usd_per_hour=0.0))
    (made,) = launches(planned(world(jobs(2), **with_offerings(*SPOTS, *BOUGHT)), base))
    assert (made.count, made.offerings, made.spill) == (2, BOUGHT, "")


# ---------------------------------------------------------------------- few calls


def test_a_thousand_jobs_that_come_over_seconds_need_at_most_twenty_calls() -> None:
    """400 webhooks a second, a tick each 50 ms, launches answered at once."""
    many = tuple(
        offering(zone, 0.04 + number / 5000, machine_type=f"m{number}.large") for number in range(20) for zone in ZONES
    )
    calls, rows, now, arrived = 0, list[Instance](), NOW, 0
    waiting = jobs(1000)
    while len(rows) < 1000:
        arrived = min(1000, arrived + 20)
        now += timedelta(seconds=0.05)
        made = planned(world(waiting[:arrived], rows, **with_offerings(*many)), WIDE, now=now)
        for launch in launches(made):
            calls += 1
            where = launch.offerings[0].capacity_pool
            for _ in range(launch.count):
                row = machine(len(rows), S.LAUNCHED, seconds=0, capacity_pool=where, token=BatchToken(f"b-{calls}"))
                rows.append(replace(row, created_at=now, since=now))
    assert calls <= 20
    assert now - NOW <= timedelta(seconds=2.5 + 1.0), "within a second of the last webhook"


# ---------------------------------------------------------------------- whatever the world


@st.composite
def markets(draw: st.DrawFn) -> tuple[Snapshot, Pool]:
    offerings = [
        replace(
            offering(zone, draw(st.sampled_from([0.02, 0.04, 0.05, 0.09, 0.15])), word=word, provider=provider),
            on_demand_usd_hour=draw(st.sampled_from([None, 0.1])),
        )
        for provider in (AWS, GCE)
        for zone in ZONES
        for word in CapacityType
        if draw(st.booleans())
    ]
    closed = [one for one in offerings if draw(st.integers(0, 3)) == 0]
    scope = CapacityScope(zone=draw(st.sampled_from([None, "eu-central-1a"])), capacity_type=CapacityType.SPOT)
    quota = ScopeCooldown(provider=AWS, scope=scope, until=NOW + timedelta(seconds=9), failures=1, reason="quota")
    rows = [
        replace(machine(number, S.BUSY, seconds=900), capacity_pool=draw(st.sampled_from(offerings)).capacity_pool)
        for number in range(draw(st.integers(0, 12)) if offerings else 0)
    ]
    snapshot = world(
        [queued(number, attempt=draw(st.integers(1, 3))) for number in range(1, 1 + draw(st.integers(0, 40)))],
        rows,
        **with_offerings(*offerings, cooldowns=cooling(*closed)),
        scope_cooldowns=(quota,) if draw(st.booleans()) else (),
    )
    chosen = pool(
        LINUX,
        "linux",
        "x64",
        providers=(AWS, GCE),
        max=draw(st.integers(1, 60)),
        spot_enabled=draw(st.integers(0, 4)) > 0,
        spot_spread=draw(st.sampled_from([0.1, 0.34, 0.5, 1.0])),
        spill_enabled=draw(st.booleans()),
        spill_caps=Caps(usd_per_hour=draw(st.sampled_from([None, 0.3]))),
        on_demand_from=draw(st.sampled_from([3, 4])),
    )
    return snapshot, chosen


@settings(max_examples=150, deadline=None)
@given(case=markets(), cap=st.sampled_from([None, 0.5, 2.0]))
def test_every_launch_keeps_every_rule(case: tuple[Snapshot, Pool], cap: float | None) -> None:
    snapshot, chosen = case
    rules = rules_of(chosen, caps=Caps(usd_per_hour=cap))
    made = launches(planned(snapshot, rules=rules))
    assert made == launches(planned(snapshot, rules=rules)), "the same snapshot, the same plan"
    rows = snapshot.instances.values()
    prices = math.fsum(row.price_usd_hour for row in rows)
    bought = math.fsum(row.price_usd_hour for row in rows if not is_spot(row.capacity_pool))
    for one in made:
        dearest = max(o.price_usd_hour for o in one.offerings)
        prices += one.count * dearest
        words = {o.capacity_pool.capacity_type for o in one.offerings}
        assert len({o.capacity_pool.provider for o in one.offerings}) == len(words) == 1
        assert dearest <= NEAR * 2.5 * min(o.price_usd_hour for o in one.offerings), "no silly one beside a good one"
        for o in one.offerings:
            assert o.capacity_pool not in snapshot.cooldowns
            assert not (
                o.capacity_pool.provider == AWS
                and any(quota.scope.covers(o.capacity_pool) for quota in snapshot.scope_cooldowns)
            )
        if words == {CapacityType.ON_DEMAND}:
            bought += one.count * dearest if chosen.spot_enabled else 0.0
            assert_justified(one, snapshot, chosen, made)
    if made and cap is not None:
        assert prices <= cap + 1e-9
    limit = chosen.spill_caps.usd_per_hour
    if any(one.spill for one in made) and limit is not None:
        assert bought <= limit + 1e-9
    assert_spread(made, snapshot, chosen)


def is_spot(place: CapacityPool | None) -> bool:
    return place is not None and place.capacity_type is CapacityType.SPOT


def assert_justified(one: Launch, snapshot: Snapshot, chosen: Pool, made: list[Launch]) -> None:
    """On_demand is base, an attempt's due, or stands in for spot that is out as a whole."""
    if not chosen.spot_enabled:
        assert one.spill == ""
    elif one.spill == "attempt":
        assert one.count <= sum(job.attempt >= chosen.on_demand_from for job in snapshot.jobs.values())
        assert "attempt" in one.reason
    else:
        assert chosen.spill_enabled
        assert one.spill
        assert "on_demand because" in one.reason
        assert not any(is_spot(launch.offerings[0].capacity_pool) for launch in made)


def assert_spread(made: list[Launch], snapshot: Snapshot, chosen: Pool) -> None:
    spots_offered = sum(is_spot(one.capacity_pool) for one in snapshot.offerings[LINUX])
    if any("spread" in one.reason for one in made) or spots_offered * chosen.spot_spread < 1:
        return
    held = Counter(place_of(row.capacity_pool) for row in snapshot.instances.values() if is_spot(row.capacity_pool))
    spots = [one for one in made if is_spot(one.offerings[0].capacity_pool)]
    total = sum(held.values()) + len(snapshot.jobs)
    most = max(FEW, math.ceil(chosen.spot_spread * total))
    for one in spots:
        for o in one.offerings:  # the cloud may put all of a launch into any of its capacity pools
            held[place_of(o.capacity_pool)] += one.count
    assert all(held[place_of(o.capacity_pool)] <= most for one in spots for o in one.offerings)
