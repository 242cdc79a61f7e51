"""Builders for tests of `plan`: a pool, a forge's view, and machines in every state, all as of one instant."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from autoscaler.model import (
    Action,
    Demand,
    ForgeView,
    Instance,
    InstanceState,
    Job,
    JobState,
    Plan,
    Pool,
    Rules,
    Snapshot,
)
from autoscaler.plan import plan
from autoscaler.spi import ForgeName, ForgeTraits, Labels, RunnerId, label_set
from tests.admin_world import GITHUB, LINUX, OFFERING, demand_of, instance, job, pool, rules_of, snapshot_of

A = TypeVar("A", bound=Action)
S = InstanceState
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
GITLAB = ForgeName("gitlab")
GITHUB_TRAITS = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)
GITLAB_TRAITS = ForgeTraits(
    seals_runners=True, removes_finished_runners=False, needs_queue_holder=True, requeues_at_once=True
)
POOL = pool(LINUX, "linux", "x64", max=10, idle_timeout=timedelta(seconds=60), boot_timeout=timedelta(seconds=300))
COMPLETE = frozenset({"github", "github/jobs", "gitlab", "gitlab/jobs", "aws"})


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def forge(name: ForgeName = GITHUB, **changes: Any) -> ForgeView:
    view = ForgeView(
        name=name,
        traits=GITHUB_TRAITS if name == GITHUB else GITLAB_TRAITS,
        is_healthy=True,
        registrations_left=180,
        registrations_per_s=3,
    )
    return replace(view, **changes)


def queued(number: int, *labels: str, **changes: Any) -> Job:
    """The higher the number, the younger the job."""
    given = {"labels": label_set(labels or ("linux", "x64")), **changes}
    return job(number, ago(100 - number), JobState.QUEUED, **given)


def machine(number: int, state: InstanceState, *, seconds: float = 10, **changes: Any) -> Instance:
    """A machine that is in its state since `seconds`."""
    return instance(number, ago(seconds), state, **changes)


def runner(
    number: int, state: InstanceState = S.IDLE, *, labels: Labels = ("linux", "x64"), **changes: Any
) -> Instance:
    """A registered machine. `of` is the forge it is registered at."""
    at = changes.pop("of", GITHUB)
    demand = Demand(forge=at, scope=demand_of(queued(1)).scope, group="", labels=labels)
    registered = {"demand": demand, "runner_id": RunnerId(str(number)), "runner_name": f"ours--{number}"}
    return machine(number, state, **{**registered, **changes})


def world(jobs: Sequence[Job] = (), machines: Sequence[Instance] = (), **changes: Any) -> Snapshot:
    """A snapshot with complete listings, a cheap offering and one healthy GitHub."""
    given: Mapping[str, Any] = {
        "forges": {GITHUB: forge()},
        "offerings": {LINUX: (OFFERING,)},
        "complete": COMPLETE,
        **changes,
    }
    return snapshot_of(jobs, machines, **given)


def planned(snapshot: Snapshot, *pools: Pool, rules: Rules | None = None, now: datetime = NOW) -> Plan:
    return plan(snapshot, rules or rules_of(*(pools or (POOL,))), now)


def actions_of(made: Plan, kind: type[A]) -> list[A]:
    return [action for action in made.actions if isinstance(action, kind)]


def only(made: Plan, kind: type[A]) -> A:
    """The one action of a plan, of this kind."""
    (action,) = made.actions
    assert isinstance(action, kind), action
    return action
