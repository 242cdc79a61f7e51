"""What holds for every plan, whatever the world: caps, purity, rest after work, and no harm to a running job."""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, assert_never

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model import (
    Abandon,
    Arrivals,
    Caps,
    EndReason,
    Foreseen,
    HoldQueue,
    Instance,
    InstanceState,
    Job,
    JobState,
    Launch,
    Plan,
    PoolControl,
    Register,
    Release,
    Requeue,
    Rules,
    Seal,
    Settle,
    Snapshot,
    SweepInstances,
    SweepRunner,
    Terminate,
    Withdraw,
)
from autoscaler.plan import plan
from autoscaler.spi import CapacityType, InstanceId, Labels, PoolName, ProviderName, RunnerId, Scope
from autoscaler.states import INSTANCE_MOVES
from tests.admin_world import GITHUB, OFFERING, SPOT, demand_of, instance, job, pool, rules_of
from tests.unit.plan_world import COMPLETE, GITLAB, NOW, S, ago, forge, world

AWS = ProviderName("aws")
SMALL, LARGE = PoolName("small"), PoolName("large")
LABELS: dict[PoolName, Labels] = {SMALL: ("linux",), LARGE: ("large", "linux")}
DEAR = replace(OFFERING, capacity_pool=replace(SPOT, zone="eu-central-1b"), price_usd_hour=0.2)
UNREGISTERED = (S.REQUESTED, S.LAUNCHED, S.READY)
REGISTERED = (S.REGISTERING, S.IDLE, S.BUSY, S.DRAINING)


@st.composite
def jobs(draw: st.DrawFn, number: int) -> Job:
    name = draw(st.sampled_from([SMALL, LARGE]))
    state = draw(st.sampled_from([JobState.QUEUED] * 3 + [JobState.RUNNING, JobState.LOST]))
    return job(
        number,
        ago(draw(st.integers(0, 2000))),
        state,
        forge=draw(st.sampled_from([GITHUB, GITLAB])),
        scope=Scope(draw(st.sampled_from(["acme", "other"]))),
        labels=draw(st.sampled_from([LABELS[SMALL], LABELS[name]])),
        pool=draw(st.sampled_from([name, name, name, None])),
        run_id=draw(st.sampled_from(["500", "501"])),
        repo=draw(st.sampled_from(["acme/shop", "acme/web"])),
        attempt=draw(st.integers(1, 3)),
    )


@st.composite
def machines(draw: st.DrawFn, number: int, known: list[Job]) -> Instance:
    state = draw(st.sampled_from([*UNREGISTERED, *REGISTERED, S.TERMINATING]))
    row = instance(
        number,
        ago(draw(st.integers(0, 400))),
        state,
        pool=draw(st.sampled_from([SMALL, LARGE])),
        price_usd_hour=draw(st.sampled_from([0.0, 0.0415, 0.2])),
        ending=EndReason.SURPLUS if state is S.TERMINATING else None,
    )
    if state not in REGISTERED:
        return row
    one = draw(st.sampled_from(known)) if known else job(99, NOW)
    demand = demand_of(one)
    works_on = one.id if state in (S.BUSY, S.DRAINING) and draw(st.booleans()) else None
    return replace(row, demand=demand, runner_id=RunnerId(str(number)), runner_name=f"ours--{number}", job=works_on)


@st.composite
def foreseen_jobs(draw: st.DrawFn) -> Foreseen:
    name = draw(st.sampled_from([SMALL, LARGE]))
    return Foreseen(
        forge=GITHUB,
        scope=Scope("acme"),
        repo="acme/shop",
        run_id="500",
        pool=name,
        labels=LABELS[name],
        count=draw(st.integers(1, 4)),
        due_at=NOW + timedelta(seconds=draw(st.integers(-200, 100))),
        hours=draw(st.sampled_from([None, 0.05, 2.0])),
        reason="test",
    )


TIMES = st.lists(st.integers(20, 200), min_size=1, max_size=20).map(
    lambda seconds: Arrivals(seconds=tuple(sorted(map(float, seconds))))
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Snapshot, Rules]:
    known = [draw(jobs(number)) for number in range(draw(st.integers(0, 12)))]
    rows = [draw(machines(number, known)) for number in range(draw(st.integers(0, 12)))]
    ids = [row.id for row in rows]
    left = st.floats(0, 20)
    snapshot = world(
        known,
        rows,
        forges={
            GITHUB: forge(registrations_left=draw(left), registrations_per_s=draw(st.sampled_from([0.0, 0.1, 3.0]))),
            GITLAB: forge(GITLAB, registrations_left=draw(left)),
        },
        offerings={SMALL: (DEAR, OFFERING), LARGE: draw(st.sampled_from([(), (OFFERING,), (DEAR,)]))},
        complete=draw(st.sampled_from([COMPLETE, COMPLETE - {"aws"}, COMPLETE - {"github/jobs"}, frozenset()])),
        controls=draw(st.dictionaries(st.sampled_from([SMALL, LARGE]), st.sampled_from(PoolControl))),
        ending=draw(st.dictionaries(st.sampled_from(ids), st.just("no_contact"))) if ids else {},
        disputed=frozenset(draw(st.lists(st.sampled_from(ids), max_size=2))) if ids else frozenset(),
        foreseen=tuple(draw(st.lists(foreseen_jobs(), max_size=2))),
        arrivals=draw(st.dictionaries(st.sampled_from([(SMALL, AWS), (LARGE, AWS)]), TIMES)),
    )
    pools = [
        pool(name, *labels, forges=frozenset(), min=draw(st.integers(0, 3)), max=draw(st.integers(3, 12)))
        for name, labels in LABELS.items()
    ]
    caps = Caps(
        instances=draw(st.sampled_from([None, 5, 12])),
        usd_per_hour=draw(st.sampled_from([None, 0.5, 1.0])),
        usd_per_day=draw(st.sampled_from([None, 2.0, 20.0])),
    )
    return snapshot, rules_of(*pools, caps=caps)


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_no_cap_is_ever_passed_by_a_launch(case: tuple[Snapshot, Rules]) -> None:
    snapshot, rules = case
    made = plan(snapshot, rules, NOW)
    after = carried_out(snapshot, made)
    for launch in (action for action in made.actions if isinstance(action, Launch)):
        live = sum(1 for row in after.instances.values() if row.pool == launch.pool)
        assert live <= rules.pools[launch.pool].max
    if any(isinstance(action, Launch) for action in made.actions):
        prices = math.fsum(row.price_usd_hour for row in after.instances.values())
        committed = math.fsum(
            row.price_usd_hour * rules.pools[row.pool].max_job_runtime / timedelta(hours=1)
            for row in after.instances.values()
        )
        assert rules.caps.instances is None or len(after.instances) <= rules.caps.instances
        assert rules.caps.usd_per_hour is None or prices <= rules.caps.usd_per_hour + 1e-9
        assert rules.caps.usd_per_day is None or committed <= rules.caps.usd_per_day + 1e-9


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_no_forge_is_asked_for_more_registrations_than_its_budget(case: tuple[Snapshot, Rules]) -> None:
    made = plan(*case, NOW)
    for name, view in case[0].forges.items():
        minted = [action for action in made.actions if isinstance(action, Register) and action.demand.forge == name]
        assert len(minted) <= view.registrations_left


@settings(max_examples=50, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_a_plan_depends_on_nothing_but_what_it_is_given(case: tuple[Snapshot, Rules], order: Any) -> None:
    """The same world in another order of rows gives the same decisions."""
    snapshot, rules = case
    first = plan(snapshot, rules, NOW)
    assert plan(snapshot, rules, NOW) == first
    job_rows, machine_rows = list(snapshot.jobs.items()), list(snapshot.instances.items())
    order.shuffle(job_rows)
    order.shuffle(machine_rows)
    again = plan(replace(snapshot, jobs=dict(job_rows), instances=dict(machine_rows)), rules, NOW)
    assert decisions(again) == decisions(first)
    assert again.wake_at == first.wake_at


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_a_live_job_never_loses_its_machine_to_a_plan(case: tuple[Snapshot, Rules]) -> None:
    snapshot, rules = case
    for action in plan(snapshot, rules, NOW).actions:
        ended = action.instances if isinstance(action, Terminate) else ()
        for row in (snapshot.instances[id_] for id_ in ended):
            is_working = row.state in (S.BUSY, S.DRAINING)
            assert not is_working or row.job is not None
            known = snapshot.jobs.get(row.job) if row.job is not None else None
            assert known is None or known.state not in (JobState.QUEUED, JobState.RUNNING)


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_only_a_machine_without_a_registration_is_ended_without_the_forges_word(case: tuple[Snapshot, Rules]) -> None:
    snapshot, rules = case
    for action in plan(snapshot, rules, NOW).actions:
        if isinstance(action, Terminate):
            states = {snapshot.instances[id_].state for id_ in action.instances}
            assert not states & {S.REGISTERING, S.IDLE}


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_every_action_is_a_move_that_the_tables_allow_and_has_a_reason(case: tuple[Snapshot, Rules]) -> None:
    snapshot, rules = case
    for action in plan(snapshot, rules, NOW).actions:
        assert action.reason
        if isinstance(action, Terminate):
            for id_ in action.instances:
                state = snapshot.instances[id_].state
                assert state is S.TERMINATING or S.TERMINATING in INSTANCE_MOVES[state]
        if isinstance(action, Register):
            assert snapshot.instances[action.instance].state is S.READY


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_no_machine_and_no_job_is_used_twice_in_one_plan(case: tuple[Snapshot, Rules]) -> None:
    snapshot, rules = case
    used: list[InstanceId] = []
    for action in plan(snapshot, rules, NOW).actions:
        match action:
            case Register() | Release() | Withdraw():
                used.append(action.instance)
            case Terminate():
                used.extend(action.instances)
    assert len(used) == len(set(used))


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_plans_that_are_carried_out_come_to_rest(case: tuple[Snapshot, Rules]) -> None:
    """Nearly always at once; a machine kept for `min` may become surplus by what was launched beside it."""
    snapshot, rules = case
    made = plan(snapshot, rules, NOW)
    for _ in range(2):
        snapshot = carried_out(snapshot, made)
        made = plan(snapshot, rules, NOW)
        assert not [action for action in made.actions if isinstance(action, Register)], "all was registered at first"
    assert made.actions == ()


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_turns_never_serve_fewer_jobs_than_one_repo_alone_would_get(case: tuple[Snapshot, Rules]) -> None:
    """Who is served changes, how many are does not."""
    snapshot, rules = case
    alone = replace(snapshot, jobs={id_: replace(row, repo="acme/one") for id_, row in snapshot.jobs.items()})
    made, without = plan(snapshot, rules, NOW), plan(alone, rules, NOW)
    assert asked(made) == asked(without)


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_foreseen_jobs_take_nothing_from_queued_ones_and_are_no_reason_to_pay_more(
    case: tuple[Snapshot, Rules],
) -> None:
    snapshot, rules = case
    bought = replace(DEAR, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND))
    snapshot = replace(snapshot, offerings={name: (*some, bought) for name, some in snapshot.offerings.items()})
    made, without = plan(snapshot, rules, NOW), plan(replace(snapshot, foreseen=()), rules, NOW)
    assert {id_ for one in made.blocked for id_ in one.ids} == {id_ for one in without.blocked for id_ in one.ids}
    for name in rules.pools:
        assert launches(made, name, spills=True) <= launches(without, name, spills=True)


@settings(max_examples=100, deadline=None)
@given(
    working=st.lists(st.integers(0, 8), min_size=2, max_size=5),
    waiting=st.lists(st.integers(0, 8), min_size=5, max_size=5),
    free=st.integers(1, 6),
    order=st.randoms(use_true_random=False),
)
def test_no_repo_waits_while_another_one_gets_more_than_one_machine_beyond_it(
    working: list[int], waiting: list[int], free: int, order: Any
) -> None:
    names = [f"acme/repo-{number}" for number in range(len(working))]
    owners = [name for name, count in zip(names, waiting, strict=False) for _ in range(count)]
    order.shuffle(owners)
    queue = [
        job(number, ago(900 - number), repo=name, scope=Scope(name), labels=LABELS[SMALL], pool=SMALL)
        for number, name in enumerate(owners)
    ]
    rows = [
        instance(100 * at + number, ago(10), S.BUSY, pool=SMALL, repo=name, job=job(9000, NOW).id)
        for at, name in enumerate(names)
        for number in range(working[at])
    ]
    rows += [instance(2000 + number, ago(10), S.READY, pool=SMALL) for number in range(free)]
    full = pool(SMALL, *LABELS[SMALL], max=len(rows))
    made = plan(world(queue, rows), rules_of(full), NOW)
    given_to = [str(action.demand.scope) for action in made.actions if isinstance(action, Register)]
    assert len(given_to) == min(free, len(queue))
    if len(queue) > free:  # else nobody waits
        has = {name: working[at] + given_to.count(name) for at, name in enumerate(names)}
        left = [name for name in names if owners.count(name) > given_to.count(name)]
        assert all(has[name] <= has[other] + 1 for name in set(given_to) for other in left)


def asked(made: Plan) -> tuple[int, int]:
    """How many machines are registered and launched."""
    registered = sum(1 for action in made.actions if isinstance(action, Register))
    return registered, sum(action.count for action in made.actions if isinstance(action, Launch))


def launches(made: Plan, name: PoolName, *, spills: bool) -> int:
    some = [action for action in made.actions if isinstance(action, Launch) and action.pool == name]
    return sum(action.count for action in some if bool(action.spill) is spills)


def decisions(made: Plan) -> Any:
    """A plan without the order of machines inside one termination."""
    return {
        replace(action, instances=tuple(sorted(action.instances))) if isinstance(action, Terminate) else action
        for action in made.actions
    }


def carried_out(snapshot: Snapshot, made: Plan, now: datetime = NOW) -> Snapshot:
    """What the rows and sightings are once every call of a plan was answered well."""
    rows, known = dict(snapshot.instances), dict(snapshot.jobs)
    forges = dict(snapshot.forges)
    sealed, doubtful = set(snapshot.sealed), dict(snapshot.doubtful)

    def end(id_: InstanceId, reason: EndReason) -> None:
        rows[id_] = replace(rows[id_], state=InstanceState.TERMINATING, since=now, ending=reason)

    for number, action in enumerate(made.actions):
        match action:
            case Launch():
                dearest = max(offering.price_usd_hour for offering in action.offerings)
                for index in range(action.count):
                    row = instance(1000 * (number + 1) + index, now, S.REQUESTED, pool=action.pool)
                    rows[row.id] = replace(row, price_usd_hour=dearest, created_at=now)
            case Register():
                rows[action.instance] = replace(
                    rows[action.instance],
                    state=S.REGISTERING,
                    since=now,
                    demand=action.demand,
                    runner_id=RunnerId(f"new-{number}"),
                )
                view = forges[action.demand.forge]
                forges[view.name] = replace(view, registrations_left=view.registrations_left - 1)
            case Release():
                end(action.instance, action.end_reason)
            case Terminate():
                for id_ in action.instances:
                    end(id_, action.end_reason)
            case Seal():
                sealed.add(action.instance)
            case Settle():
                doubtful.pop(action.job)
            case HoldQueue():
                view = forges[action.forge]
                forges[view.name] = replace(view, holders=view.holders | {(action.scope, action.labels)})
            case Requeue():
                known = {id_: row for id_, row in known.items() if id_ not in action.jobs}
            case Abandon():
                del known[action.job]
            case SweepInstances() | SweepRunner() | Withdraw():
                raise AssertionError("these worlds have no orphans and no lost registrations")
            case _:
                assert_never(action)
    return replace(snapshot, jobs=known, instances=rows, forges=forges, sealed=frozenset(sealed), doubtful=doubtful)
