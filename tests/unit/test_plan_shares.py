"""Fairness: when there is not enough for everybody, repos and pools take turns, and those that wait are told so."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import Blocked, BlockedBy, Caps, Instance, Job, Launch, Plan, Pool, Register
from autoscaler.spi import PoolName, ProviderName, Scope
from tests.admin_world import GITHUB, GPU, LINUX, OFFERING, pool, rules_of
from tests.unit.plan_world import POOL, S, actions_of, forge, machine, planned, queued, runner, world

AWS = ProviderName("aws")


def of(repo: str, number: int, **changes: object) -> Job:
    """A queued job of a repo whose runners are registered apart from all others."""
    return queued(number, repo=f"acme/{repo}", scope=Scope(f"acme/{repo}"), **changes)


def working(repo: str, number: int, **changes: object) -> Instance:
    return runner(number, S.BUSY, job=queued(5000 + number).id, repo=f"acme/{repo}", **changes)


def served(made: Plan) -> list[str]:
    """The repos whose jobs get a ready machine now, in order."""
    return [str(action.demand.scope) for action in actions_of(made, Register)]


def launched(made: Plan) -> dict[PoolName, int]:
    counts: Counter[PoolName] = Counter()
    for action in actions_of(made, Launch):
        counts[action.pool] += action.count
    return dict(counts)


def blocked_by(made: Plan, kind: BlockedBy) -> list[Blocked]:
    return [one for one in made.blocked if one.by is kind]


# ---------------------------------------------------------------------- repos


def test_a_matrix_of_5000_jobs_does_not_starve_a_small_repo() -> None:
    """The next machine that is free goes to the small repo's job, though 5,000 others are older."""
    full = replace(POOL, max=50)
    matrix = [of("api", number) for number in range(5000)]
    machines = [working("api", number) for number in range(49)]
    made = planned(world([*matrix, of("web", 5001)], [*machines, machine(49, S.READY)]), full)
    assert served(made) == ["acme/web"]


def test_repos_take_turns_by_the_machines_that_they_have() -> None:
    full = replace(POOL, max=9)
    jobs = [*(of("api", number) for number in range(10)), of("web", 20), of("web", 21), of("ui", 30), of("ui", 31)]
    machines = [working("api", 1), working("api", 2), working("api", 3), working("web", 4)]
    free = [machine(number, S.READY) for number in range(5, 10)]
    assert served(planned(world(jobs, [*machines, *free]), full)) == [
        "acme/ui",
        "acme/web",
        "acme/ui",
        "acme/web",
        "acme/api",
    ]


def test_runners_that_are_registered_count_for_the_repo_whose_job_they_will_take() -> None:
    full = replace(POOL, max=2)
    jobs = [of("api", 1), of("api", 2), of("web", 3)]
    registered = runner(1, S.IDLE)
    assert registered.demand is not None
    registered = replace(registered, demand=replace(registered.demand, scope=Scope("acme/api")))
    assert served(planned(world(jobs, [registered, machine(2, S.READY)]), full)) == ["acme/web"]


def test_repos_take_turns_when_jobs_have_no_machine_for_long_whatever_is_in_the_way() -> None:
    """Nothing can be had here: no cap binds."""
    rows = [working("api", 1), machine(2, S.READY)]
    for age_s, first in ((29, "acme/api"), (30, "acme/web")):
        jobs = [of("api", 100 - age_s - 5), of("api", 100 - age_s), of("web", 95)]
        assert served(planned(world(jobs, rows, offerings={LINUX: ()}))) == [first]


def test_while_there_is_room_the_oldest_job_is_first() -> None:
    jobs = [of("api", 81), of("api", 82), of("web", 83)]
    made = planned(world(jobs, [working("api", 1), machine(2, S.READY)]))
    assert (served(made), launched(made)) == (["acme/api"], {LINUX: 2})


def test_a_registration_budget_is_shared_in_turns() -> None:
    scarce = forge(registrations_left=2, registrations_per_s=0)
    jobs = [*(of("api", number) for number in range(5)), of("web", 10)]
    free = [machine(number, S.READY) for number in range(6)]
    assert served(planned(world(jobs, free, forges={GITHUB: scarce}))) == ["acme/api", "acme/web"]


@pytest.mark.parametrize("caps", [Caps(instances=3), Caps(usd_per_hour=0.1), Caps(usd_per_day=0.7)])
def test_every_kind_of_cap_makes_repos_take_turns(caps: Caps) -> None:
    jobs = [*(of("api", number) for number in range(5)), of("web", 10)]
    rows = [working("api", 1, price_usd_hour=0.03), machine(2, S.READY, price_usd_hour=0.03)]
    made = planned(world(jobs, rows), rules=rules_of(replace(POOL, max_job_runtime=timedelta(hours=6)), caps=caps))
    assert served(made) == ["acme/web"]


def test_a_job_that_waits_for_its_turn_is_told_whose_turn_it_is() -> None:
    full = replace(POOL, max=50)
    matrix = [of("api", number) for number in range(60)]
    small = [of("web", 100), of("ui", 101)]
    made = planned(world([*matrix, *small], [working("api", number) for number in range(50)]), full)
    (turn,) = blocked_by(made, BlockedBy.SHARE)
    assert turn.reason == (
        "pool linux is at its max of 50 instances; acme/api has 50 machines of pool linux "
        "and waits for its turn behind acme/ui, acme/web"
    )
    assert (turn.jobs, turn.ids) == (60, tuple(job.id for job in matrix))
    (cap,) = blocked_by(made, BlockedBy.CAP)
    assert (cap.jobs, set(cap.ids)) == (2, {job.id for job in small})


def test_repos_beyond_the_tenth_are_told_of_together() -> None:
    full = replace(POOL, max=40)
    busy = [working(f"repo-{number % 20}", number) for number in range(40)]
    jobs = [of(f"repo-{number}", number) for number in range(20)]
    made = planned(world([*jobs, of("new", 90)], busy), full)
    turns = blocked_by(made, BlockedBy.SHARE)
    assert len(turns) == 11
    assert "10 more repos" in turns[-1].reason
    assert {id_ for one in turns for id_ in one.ids} == {job.id for job in jobs}


def test_one_repo_alone_waits_for_the_cap_and_nobody_else() -> None:
    full = replace(POOL, max=2)
    made = planned(world([of("api", 1)], [working("api", 1), working("api", 2)]), full)
    assert [one.by for one in made.blocked] == [BlockedBy.CAP]


def test_shares_give_a_repo_no_more_than_its_turn_over_many_ticks() -> None:
    """Machines that end one by one are handed out so that both repos end up with the same number."""
    full = replace(POOL, max=10)
    has = Counter({"api": 10})
    waiting = {"api": 30, "web": 30}
    for step in range(20):
        has[max(sorted(has), key=lambda repo: has[repo])] -= 1
        rows = [working(repo, 100 * at + n) for at, repo in enumerate(sorted(has)) for n in range(has[repo])]
        jobs = [of(repo, 200 * at + n) for at, repo in enumerate(sorted(waiting)) for n in range(waiting[repo])]
        (scope,) = served(planned(world(jobs, [*rows, machine(900 + step, S.READY)]), full))
        has[scope.removeprefix("acme/")] += 1
        waiting[scope.removeprefix("acme/")] -= 1
    assert has == {"api": 5, "web": 5}


# ---------------------------------------------------------------------- pools

BIG, SMALL = PoolName("a-big"), PoolName("z-small")


TEN = Caps(instances=10)


def two(**changes: object) -> list[Pool]:
    return [pool(BIG, "big", max=100, **changes), pool(SMALL, "small", max=100, **changes)]


def both(big: int, small: int) -> list[Job]:
    return [
        *(queued(number, "big", pool=BIG) for number in range(big)),
        *(queued(1000 + number, "small", pool=SMALL) for number in range(small)),
    ]


def capped(jobs: Sequence[Job], machines: Sequence[Instance] = (), *, caps: Caps = TEN, **changes: object) -> Plan:
    offered = {BIG: (OFFERING,), SMALL: (OFFERING,)}
    rules = rules_of(*two(), caps=caps)
    return planned(world(jobs, machines, offerings=offered, **changes), rules=rules)


def test_pools_of_equal_priority_share_the_deployments_cap() -> None:
    assert launched(capped(both(500, 500))) == {BIG: 5, SMALL: 5}


def test_a_pool_that_needs_little_leaves_the_rest_to_the_others() -> None:
    assert launched(capped(both(500, 2))) == {BIG: 8, SMALL: 2}


def test_a_pool_that_has_machines_waits_until_the_other_has_as_many() -> None:
    busy = [runner(number, S.BUSY, pool=BIG, job=queued(2000 + number).id) for number in range(6)]
    assert launched(capped(both(500, 500), busy)) == {SMALL: 4}


def test_money_is_shared_by_pools_of_equal_priority() -> None:
    assert launched(capped(both(50, 50), caps=Caps(usd_per_hour=4 * OFFERING.price_usd_hour))) == {BIG: 2, SMALL: 2}


def test_a_providers_cap_is_shared_by_pools_of_equal_priority() -> None:
    offered = {BIG: (OFFERING,), SMALL: (OFFERING,)}
    rules = replace(rules_of(*two()), provider_caps={AWS: Caps(instances=4)})
    assert launched(planned(world(both(50, 50), offerings=offered), rules=rules)) == {BIG: 2, SMALL: 2}


def test_what_one_pool_cannot_use_goes_to_another_in_the_same_tick() -> None:
    rules = rules_of(*two(), caps=Caps(instances=10))
    made = planned(world(both(500, 500), offerings={BIG: (OFFERING,), SMALL: ()}), rules=rules)
    assert launched(made) == {BIG: 10}


def test_a_pool_of_higher_priority_is_served_before_any_turn() -> None:
    rules = rules_of(pool(LINUX, "linux", max=100), pool(GPU, "gpu", max=100, priority=1), caps=Caps(instances=10))
    jobs = [*(queued(number, "linux") for number in range(50)), *(queued(90 + n, "gpu", pool=GPU) for n in range(9))]
    made = planned(world(jobs, offerings={LINUX: (OFFERING,), GPU: (OFFERING,)}), rules=rules)
    assert launched(made) == {LINUX: 1, GPU: 9}


def test_the_pool_with_the_fewest_machines_registers_first() -> None:
    scarce = forge(registrations_left=1, registrations_per_s=0)
    rows = [
        *(runner(number, S.BUSY, pool=BIG, job=queued(2000 + number).id) for number in range(3)),
        machine(10, S.READY, pool=BIG),
        machine(11, S.READY, pool=SMALL),
    ]
    made = capped(both(5, 5), rows, caps=Caps(), forges={GITHUB: scarce})
    (register,) = actions_of(made, Register)
    assert register.demand.labels == ("small",)


def test_everybody_who_gets_no_machine_is_told_why() -> None:
    made = capped(both(500, 500))
    assert sum(one.jobs for one in made.blocked) == 990
    assert len({id_ for one in made.blocked for id_ in one.ids}) == 990
