"""plan(snapshot, rules, now): what to do now, and why. The product.

Pure: no clock, no randomness, no logging, no await. Level decides: demand and capacity are counted anew each time.
The order is the order of importance:

    deadlines and ends    what must go (`plan_ends`)
    lost jobs             queued again, or given up (`plan_requeue`)
    unservable runs       cancelled where that is configured (`plan_unservable`)
    supply                queued jobs -> registered, ready and coming machines -> launches (`plan_supply`)
    surplus               machines that nobody needs (within `plan_supply`, which knows who covers what)
    care                  sealing, withdrawing, settling, queue holders, orphans (`plan_care`)
    predictions           how long the jobs that are seen for the first time will wait (`plan_predict`)

A job is never bound to a machine: `plan_supply` pairs them only to count each machine once.
"""

from datetime import datetime, timedelta

from autoscaler.model import Action, Plan, Register, Rules, Snapshot
from autoscaler.plan_care import plan_care
from autoscaler.plan_ends import plan_ends
from autoscaler.plan_predict import predictions
from autoscaler.plan_requeue import plan_requeue
from autoscaler.plan_supply import plan_supply
from autoscaler.plan_unservable import plan_unservable


def plan(snapshot: Snapshot, rules: Rules, now: datetime) -> Plan:
    """The actions to take now, most urgent first, each with a reason that a person can read."""
    ends = plan_ends(snapshot, rules, now)
    supply = plan_supply(snapshot, rules, now, leaving=ends.leaving)
    care = plan_care(snapshot, rules, now)
    requeues = plan_requeue(snapshot, rules, now)
    cancels, cancel_at = plan_unservable(snapshot, rules, now)
    planned: tuple[Action, ...] = (*ends.actions, *requeues.actions, *cancels, *supply.actions, *care.actions)
    held = {action: _held_until(action, snapshot, now) for action in planned}
    actions = tuple(action for action in planned if held[action] is None)
    wakes = (part.wake_at for part in (ends, requeues, supply, care))
    times = [at for at in (*wakes, cancel_at, *held.values()) if at is not None]
    wake_at = max(min(times), now + timedelta(milliseconds=50)) if times else None
    blocked = tuple(supply.blocked)
    foretold = predictions(snapshot, rules, now, actions=actions, blocked=blocked, leaving=ends.leaving)
    return Plan(actions=actions, blocked=blocked, wake_at=wake_at, predictions=foretold)


def _held_until(action: Action, snapshot: Snapshot, now: datetime) -> datetime | None:
    """When an action that failed lately may be tried again; None when it may be taken now."""
    keys = (action.key, action.demand.forge_key) if isinstance(action, Register) else (action.key,)
    return max((at for key in keys if (at := snapshot.retry_after.get(key)) is not None and at > now), default=None)
