"""The watch of the simulation: a machine that is ended without an allowed cause, or without a line on it, is found."""

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from autoscaler.model import EndReason, Instance, InstanceMove, InstanceState, Interruption, LedgerEntry
from autoscaler.sandbox.inprocess_cloud import Launched
from autoscaler.simulate.invariants import EventLog, Watch
from autoscaler.spi import ProviderId
from autoscaler.store.memory import MemoryDisk
from tests.admin_world import LINUX, instance, pool, rules_of
from tests.unit.plan_world import NOW

S = InstanceState
LINE = LedgerEntry(
    at=NOW,
    actor="autoscaler",
    action="terminate",
    subject="i-0001",
    pool=LINUX,
    reason="surplus: idle for 0:01:00",
    outcome="asked",
    evidence="its forge let runner ours--1 go",
)


@dataclass
class Machine:
    """What the watch asks of a cloud's machine."""

    provider_id: ProviderId


def ended(ending: EndReason, *, job: str = "", registered: bool = False, **changes: object) -> list[str]:
    """What is found when a machine is ended so, whose runner runs `job` at its forge."""
    disk, found = MemoryDisk(), list[str]()
    row = instance(1, NOW, S.TERMINATING, ending=ending, provider_id=ProviderId("p-1"))
    disk.instances[row.id] = row
    busy_for: object = changes.pop("busy_for", timedelta(hours=1))
    assert isinstance(busy_for, timedelta)
    began = InstanceMove(instance=row.id, at=NOW - busy_for, from_state=S.IDLE, to_state=S.BUSY, cause="test")
    disk.moves[row.id] = [(1, began)]
    line = changes.pop("line", LINE)
    if isinstance(line, LedgerEntry):
        disk.ledger[1] = line
        disk.last_entry = 1
    if changes.pop("is_taken", False):
        disk.interruptions[row.id] = taken(row)
    watch = Watch(
        disk,
        deployment="ci",
        rules=lambda: rules_of(pool(LINUX, "linux", max_job_runtime=timedelta(hours=6))),
        is_busy=lambda _: job,
        is_registered=lambda _: registered,
        clock_now=lambda: NOW,
        log=EventLog(now=lambda: 0.0),
        report=found.append,
    )
    machine: Launched = Machine(ProviderId("p-1"))  # type: ignore[assignment]  # of a machine, the watch reads its id only
    watch.terminating(machine)
    return found


def taken(row: Instance) -> Interruption:
    return Interruption(
        instance=row.id,
        provider=row.provider,
        pool=row.pool,
        capacity_pool=row.capacity_pool,
        noticed_at=NOW,
        sources=("agent",),
        is_announced=True,
    )


@pytest.mark.parametrize("ending", [one for one in EndReason if one is not EndReason.MAX_RUNTIME])
def test_a_busy_runner_that_is_ended_without_an_allowed_cause_is_found(ending: EndReason) -> None:
    (found,) = ended(ending, job="github:7")
    assert "while its forge says it runs github:7" in found


@pytest.mark.parametrize("ending", [EndReason.INTERRUPTED, EndReason.CHAOS])
def test_a_machine_that_its_cloud_takes_may_be_busy(ending: EndReason) -> None:
    assert ended(ending, job="github:7", is_taken=True) == []


def test_a_job_may_be_ended_once_it_had_all_of_its_time() -> None:
    assert ended(EndReason.MAX_RUNTIME, job="github:7", busy_for=timedelta(hours=6)) == []
    assert len(ended(EndReason.MAX_RUNTIME, job="github:7", busy_for=timedelta(hours=5))) == 1


def test_an_operators_order_must_be_on_record_as_theirs() -> None:
    theirs = replace(LINE, actor="admin token 1")
    assert ended(EndReason.OPERATOR, job="github:7", line=theirs) == []


@pytest.mark.parametrize("line", [None, replace(LINE, actor=""), replace(LINE, reason=""), replace(LINE, evidence="")])
def test_each_termination_has_an_actor_a_reason_and_its_evidence(line: LedgerEntry | None) -> None:
    (found,) = ended(EndReason.SURPLUS, line=line)
    assert "the ledger lacks who, why or the evidence" in found
    assert ended(EndReason.SURPLUS) == []


def test_a_runner_that_may_still_get_a_job_is_let_go_before_its_machine_is_ended() -> None:
    (found,) = ended(EndReason.SURPLUS, registered=True)
    assert "before its forge let its runner go" in found
    assert ended(EndReason.JOB_DONE, registered=True) == []
