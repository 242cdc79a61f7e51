"""When on_demand stands in for spot: by how likely a job is to miss its target on either, and for no other reason."""

import random
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model import (
    Arrivals,
    BlockedBy,
    Burn,
    CapacityEvidence,
    Caps,
    Job,
    Launch,
    Pool,
    Snapshot,
    throttle_key,
)
from autoscaler.spi import CapacityType, ProviderName
from tests.admin_world import LINUX, pool
from tests.unit.plan_world import NOW, S, ago, machine, planned, queued, world
from tests.unit.test_plan_launch import BOUGHT, SPOTS, WIDE, cooling, is_spot, launches, offering, with_offerings

AWS, GCE = ProviderName("aws"), ProviderName("gce")
NAMED = re.compile(r"predicted breach (\d\.\d\d) on spot, (\d\.\d\d) on demand, target 60 s, margin 0\.2")


def boots(median_s: float, *, sigma: float = 0.05, count: int = 60) -> Arrivals:
    dice = random.Random(7)
    return Arrivals(seconds=tuple(sorted(median_s * dice.lognormvariate(0.0, sigma) for _ in range(count))))


def young(number: int, *, age_s: float = 1.0, **changes: Any) -> Job:
    return replace(queued(number), **{"queued_at": ago(age_s), "first_seen_at": ago(age_s), **changes})


def dry(*jobs: Job, for_s: float, boot_s: float, **changes: Any) -> Snapshot:
    """Every spot capacity pool cools; machines take so long to boot."""
    given = {"arrivals": {(LINUX, AWS): boots(boot_s)}, "cooldowns": cooling(*SPOTS, seconds=for_s), **changes}
    return world(jobs, **with_offerings(*SPOTS, *BOUGHT, **given))


# ---------------------------------------------------------------------- the rule


def test_spot_that_opens_in_time_is_waited_for() -> None:
    made = planned(dry(young(1), for_s=15, boot_s=8), WIDE)
    assert not launches(made)
    assert made.blocked[0].by is BlockedBy.CAPACITY
    assert made.wake_at is not None
    assert made.wake_at <= NOW + timedelta(seconds=2), "it is decided anew before it is too late"


def test_on_demand_stands_in_once_waiting_for_spot_costs_the_margin() -> None:
    (made,) = launches(planned(dry(young(1), for_s=50, boot_s=20), WIDE))
    assert made.spill == "refused"
    assert made.breach_spot is not None
    assert made.breach_on_demand is not None
    assert made.breach_spot - made.breach_on_demand >= 0.2
    said = NAMED.search(made.reason)
    assert said is not None
    assert (float(said[1]), float(said[2])) == pytest.approx((made.breach_spot, made.breach_on_demand), abs=0.006)


def test_a_larger_margin_waits_longer() -> None:
    case = dry(young(1), for_s=15, boot_s=45, arrivals={(LINUX, AWS): boots(45, sigma=0.2)})
    (made,) = launches(planned(case, replace(WIDE, spill_margin=0.1)))
    assert made.breach_spot is not None
    assert made.breach_on_demand is not None
    gain = made.breach_spot - made.breach_on_demand
    assert not launches(planned(case, replace(WIDE, spill_margin=gain + 0.01)))


@pytest.mark.parametrize("age_s", [1, 30, 59, 600])
def test_where_both_boot_equally_late_nothing_is_gained(age_s: float) -> None:
    arrivals = {(LINUX, AWS): boots(90)}
    case = world([young(1, age_s=age_s)], **with_offerings(*SPOTS, *BOUGHT, arrivals=arrivals))
    (made,) = launches(planned(case, WIDE))
    assert made.spill == ""
    assert is_spot(made.offerings[0].capacity_pool)


def test_a_late_job_does_not_wait_for_spot_unless_that_opens_within_seconds() -> None:
    (made,) = launches(planned(dry(young(1, age_s=300), for_s=30, boot_s=20), WIDE))
    assert (made.spill, made.breach_on_demand) == ("refused", pytest.approx(1.0))
    assert not launches(planned(dry(young(1, age_s=300), for_s=4, boot_s=20), WIDE))


def test_on_demand_of_a_quicker_provider_is_bought_while_spot_is_open() -> None:
    both = replace(WIDE, providers=(AWS, GCE))
    quick = offering("x", 0.1, provider=GCE, word=CapacityType.ON_DEMAND)
    arrivals = {(LINUX, AWS): boots(80), (LINUX, GCE): boots(20)}
    (made,) = launches(planned(world([young(1)], **with_offerings(*SPOTS, quick, arrivals=arrivals)), both))
    assert (made.offerings, made.spill) == ((quick,), "breach")
    assert NAMED.search(made.reason)


def test_spot_that_will_likely_refuse_is_left_out_where_a_call_more_is_too_late() -> None:
    evidence = {
        one.capacity_pool: CapacityEvidence(capacity_pool=one.capacity_pool, at=NOW, asked=200, refused=198)
        for one in SPOTS
    }
    strict = replace(WIDE, target=timedelta(seconds=23))
    arrivals = {(LINUX, AWS): boots(20, sigma=0.01)}
    case = with_offerings(*SPOTS, *BOUGHT, arrivals=arrivals, evidence=evidence)
    (made,) = launches(planned(world([young(1)], **case), strict))
    assert made.spill == "breach"
    (made,) = launches(planned(world([young(1)], **{**case, "evidence": {}}), strict))
    assert made.spill == ""


def test_pauses_of_seconds_without_end_do_not_hold_a_late_job_for_ever() -> None:
    elsewhere = offering("x", 0.1, provider=GCE, word=CapacityType.ON_DEMAND)
    paused = with_offerings(*SPOTS, elsewhere, retry_after={throttle_key(AWS): NOW + timedelta(seconds=9)})
    both = replace(WIDE, providers=(AWS, GCE))
    new = young(1, age_s=90, first_seen_at=ago(5))
    assert not launches(planned(world([new], **paused), both))
    old = young(1, age_s=90, first_seen_at=ago(45))
    (made,) = launches(planned(world([old], **paused), both))
    assert (made.offerings, made.spill) == ((elsewhere,), "waiting")


def test_spot_is_taken_again_by_itself() -> None:
    case = dry(young(1), for_s=50, boot_s=20)
    assert launches(planned(case, WIDE))[0].spill
    (made,) = launches(planned(case, WIDE, now=NOW + timedelta(seconds=50)))
    assert made.spill == ""


def test_money_for_spill_that_is_used_up_is_said_and_the_jobs_named() -> None:
    strict = replace(WIDE, spill_caps=Caps(usd_per_hour=0.25))
    made = planned(dry(*(young(number) for number in range(1, 6)), for_s=50, boot_s=20), strict)
    assert sum(one.count for one in launches(made)) == 2
    (blocked,) = made.blocked
    assert (blocked.by, blocked.jobs) == (BlockedBy.CAP, 3)
    assert blocked.reason == "the spill of pool linux reached its cap usd_per_hour"
    assert blocked.ids == tuple(young(number).id for number in (3, 4, 5))


# ---------------------------------------------------------------------- error budget, second attempts


def test_an_error_budget_that_burns_takes_its_share_from_spot() -> None:
    burns = {LINUX: Burn(share=3.0, spot_share=0.5, reason="6 of 40 jobs were hurt")}
    case = world([young(number) for number in range(1, 11)], **with_offerings(*SPOTS, *BOUGHT, burns=burns))
    made = launches(planned(case, WIDE))
    bought = [one for one in made if one.spill == "error_budget"]
    assert sum(one.count for one in bought) == 5
    assert sum(one.count for one in made) == 10
    assert "at most 50% of the machines may be spot: 6 of 40 jobs were hurt" in bought[0].reason


def test_machines_that_live_count_for_the_share_of_spot() -> None:
    burns = {LINUX: Burn(share=3.0, spot_share=0.5)}
    bought = [machine(number, S.BUSY, capacity_pool=BOUGHT[0].capacity_pool) for number in range(4)]
    case = world([young(number) for number in range(1, 5)], bought, **with_offerings(*SPOTS, *BOUGHT, burns=burns))
    assert [one.spill for one in launches(planned(case, WIDE))] == [""]


def test_the_spill_cap_holds_for_an_error_budget_too_and_spot_serves_the_rest() -> None:
    burns = {LINUX: Burn(share=3.0, spot_share=0.0)}
    strict = replace(WIDE, spill_caps=Caps(usd_per_hour=0.25))
    case = world([young(number) for number in range(1, 5)], **with_offerings(*SPOTS, *BOUGHT, burns=burns))
    made = launches(planned(case, strict))
    assert [(one.count, one.spill) for one in made] == [(2, "error_budget"), (2, "")]
    assert "the spill of pool linux reached its cap usd_per_hour, so no on_demand" in made[1].reason


def test_the_second_attempt_goes_to_the_safest_spot() -> None:
    cheap, safe = offering("a", 0.030), offering("b", 0.038)
    evidence = {
        cheap.capacity_pool: CapacityEvidence(capacity_pool=cheap.capacity_pool, at=NOW, hours=50, interruptions=10),
        safe.capacity_pool: CapacityEvidence(capacity_pool=safe.capacity_pool, at=NOW, hours=500),
    }
    case = world([young(1), young(2, attempt=2)], **with_offerings(cheap, safe, *BOUGHT, evidence=evidence))
    made = {one.reason: one for one in launches(planned(case, WIDE))}
    (again,) = [one for reason, one in made.items() if "on the safest spot for attempt 2" in reason]
    (first,) = [one for reason, one in made.items() if "safest" not in reason]
    assert again.offerings == (safe,)
    assert first.offerings[0] == cheap


# ---------------------------------------------------------------------- job length


RISKY, CALM = offering("a", 0.030), offering("b", 0.040)
RISK = {
    RISKY.capacity_pool: CapacityEvidence(capacity_pool=RISKY.capacity_pool, at=NOW, hours=100, interruptions=40),
    CALM.capacity_pool: CapacityEvidence(capacity_pool=CALM.capacity_pool, at=NOW, hours=1000),
}


def lengths(**hours: float) -> dict[str, Any]:
    known = {young(1, name=name).work: value for name, value in hours.items()}
    return with_offerings(RISKY, CALM, *BOUGHT, evidence=RISK, hours=known)


def test_long_jobs_go_where_they_are_not_interrupted_and_short_ones_where_it_is_cheap() -> None:
    made = launches(
        planned(world([young(1, name="lint"), young(2, name="soak")], **lengths(lint=0.03, soak=4.0)), WIDE)
    )
    assert {one.offerings[0] for one in made} == {RISKY, CALM}
    (made_short,) = launches(planned(world([young(1, name="lint")], **lengths(lint=0.03)), WIDE))
    (made_long,) = launches(planned(world([young(1, name="soak")], **lengths(soak=4.0)), WIDE))
    assert (made_short.offerings[0], made_long.offerings[0]) == (RISKY, CALM)


def test_lengths_that_cost_about_the_same_anywhere_share_a_launch() -> None:
    hours = {young(1, name=f"job {number}").work: 0.02 * 4.0**number for number in range(4)}
    case = with_offerings(*SPOTS, *BOUGHT, hours=hours)
    (made,) = launches(planned(world([young(number, name=f"job {number}") for number in range(4)], **case), WIDE))
    assert made.count == 4


# ---------------------------------------------------------------------- whatever the world


@st.composite
def outages(draw: st.DrawFn) -> tuple[Snapshot, Pool]:
    offered = [*SPOTS, *BOUGHT]
    closed = [one for one in offered if draw(st.integers(0, 2)) > 0]
    cooldowns = {}
    for one in closed:
        cooldowns |= cooling(one, seconds=draw(st.sampled_from([1.0, 8.0, 30.0, 120.0])))
    jobs = [
        young(
            number, age_s=draw(st.sampled_from([0.5, 20.0, 50.0, 300.0])), attempt=draw(st.sampled_from([1, 1, 2, 3]))
        )
        for number in range(1, 1 + draw(st.integers(1, 25)))
    ]
    changes: dict[str, Any] = {"cooldowns": cooldowns}
    if draw(st.booleans()):
        changes["arrivals"] = {(LINUX, AWS): boots(draw(st.sampled_from([5.0, 30.0, 55.0])), sigma=0.3)}
    if draw(st.booleans()):
        changes["burns"] = {LINUX: Burn(share=3.0, spot_share=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])))}
    chosen = pool(
        LINUX,
        "linux",
        "x64",
        max=draw(st.integers(1, 40)),
        min=draw(st.sampled_from([0, 3])),
        spill_enabled=draw(st.booleans()),
        spill_margin=draw(st.sampled_from([0.05, 0.2, 0.5])),
        spill_caps=Caps(usd_per_hour=draw(st.sampled_from([None, 0.35]))),
    )
    return world(jobs, **with_offerings(*offered, **changes)), chosen


@settings(max_examples=150, deadline=None)
@given(outages())
def test_every_spill_names_what_it_gains_and_keeps_its_caps(case: tuple[Snapshot, Pool]) -> None:
    snapshot, chosen = case
    made = launches(planned(snapshot, chosen))
    bought = [one for one in made if not is_spot(one.offerings[0].capacity_pool)]
    for one in bought:
        assert one.spill
        assert chosen.spill_enabled or one.spill == "attempt"
        if one.spill in ("attempt", "error_budget"):
            assert one.breach_spot is one.breach_on_demand is None
        else:
            assert_named(one, snapshot, chosen)
    assert sum(one.count for one in bought) <= len(snapshot.jobs), "nobody pays on demand for machines that stand by"
    limit = chosen.spill_caps.usd_per_hour
    if limit is not None:
        assert sum(one.count * max(o.price_usd_hour for o in one.offerings) for one in bought) <= limit + 1e-9
    assert sum(one.count for one in made) <= chosen.max


def assert_named(one: Launch, snapshot: Snapshot, chosen: Pool) -> None:
    spot, on_demand = one.breach_spot, one.breach_on_demand
    assert spot is not None
    assert on_demand is not None
    assert "predicted breach" in one.reason
    assert "on_demand because" in one.reason
    if spot - on_demand < chosen.spill_margin - 1e-9:  # late either way, and nothing of spot opens soon
        assert on_demand > 1 - chosen.spill_margin
        ends = [known.until for place, known in snapshot.cooldowns.items() if is_spot(place)]
        assert len(ends) == len(SPOTS)
        assert min(ends) > NOW + timedelta(seconds=5)
