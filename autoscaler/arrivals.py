"""How long machines take from the decision to launch them until their runner can take a job: `Snapshot.arrivals`.

Memory beside the rows, kept through them by `lessons`. Everything that such a machine must go through counts: the
cloud's answer, the boot, the registration. What a machine stands ready because nobody needs it, or because a forge's
registration budget is used up, does not: the budget is no property of boots, and readers know it as it is now. A
machine that did not come within its time counts with all of that time, so that the slow tail is in the numbers.
"""

from collections.abc import Mapping, MutableMapping
from datetime import datetime, timedelta
from typing import Any

from autoscaler.learned_texts import Unkept, take_rows
from autoscaler.model import Arrivals, EndReason, Instance, InstanceState, Rules
from autoscaler.spi import InstanceId, PoolName, ProviderName
from autoscaler.states import WORKING_STATES
from autoscaler.store import Learned

ARRIVALS_KEPT = 400
"""What is rare must be among them often enough: of 64 samples one in ten is anything from one in sixteen to one in
seven by chance alone."""
REGISTRATION_S = 2.0
"""What a machine would have taken from its hello until its runner is up."""
IN_STEP_S = 1.0
"""A machine that is needed is registered within a tick or two after its hello: longer it stood ready for other
reasons."""

_S = InstanceState
_Key = tuple[PoolName, ProviderName]


class ArrivalTimes:
    """See the module docstring."""

    def __init__(self, learned: MutableMapping[str, Learned]) -> None:
        self.unkept = Unkept[_Key]("arrivals", self._text)
        self._newest: dict[_Key, tuple[float, ...]] = {}
        self._arrived: set[InstanceId] = set()
        self.shown: Mapping[_Key, Arrivals] = {}
        """What plan sees; another object when, and only when, something changed."""
        take_rows(learned, "arrivals", self._read)
        self.shown = {key: _arrivals(times) for key, times in self._newest.items()}

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        pool, provider = parts
        self._newest[PoolName(pool), ProviderName(provider)] = tuple(map(float, value))[-ARRIVALS_KEPT:]

    def machine_moved(self, before: Instance, after: Instance, rules: Rules, now: datetime) -> None:
        if after.state is _S.TERMINATED:
            self._arrived.discard(after.id)
        if after.adopted or after.starts > 1 or before.id in self._arrived:
            return
        is_up = after.state is _S.IDLE or after.state in WORKING_STATES
        if is_up and before.state is _S.REGISTERING:
            self._arrived.add(after.id)
            self._add(after, arrival_s(before, after), now)
        elif before.ending is None and after.ending is EndReason.BOOT_TIMEOUT:
            pool = rules.pools.get(after.pool)
            waited = after.since - after.created_at
            self._add(after, max(waited, pool.boot_timeout if pool is not None else waited).total_seconds(), now)
        elif before.state is _S.READY and before.ending is None and after.ending is EndReason.SURPLUS:
            # Somebody was sooner: late machines end like that, and are not to be missing from the numbers.
            self._add(after, (before.since - before.created_at).total_seconds() + REGISTRATION_S, now)

    def _add(self, row: Instance, seconds: float, now: datetime) -> None:
        key = row.pool, row.provider
        self._newest[key] = (*self._newest.get(key, ()), seconds)[-ARRIVALS_KEPT:]
        self.shown = {**self.shown, key: _arrivals(self._newest[key])}
        self.unkept.add(key, now)

    def _text(self, key: _Key) -> Any:
        return [round(one, 2) for one in self._newest[key]]


def arrival_s(registering: Instance, up: Instance) -> float:
    """Seconds from the decision until the runner was up, from the row before and after that move."""
    launched_at = registering.launched_at or registering.created_at
    ready_at = launched_at + timedelta(microseconds=registering.boot_us)
    stood_s = max(0.0, (registering.since - ready_at).total_seconds())
    return max(0.0, (up.since - registering.created_at).total_seconds() - max(0.0, stood_s - IN_STEP_S))


def _arrivals(times: tuple[float, ...]) -> Arrivals:
    return Arrivals(seconds=tuple(sorted(times)))
