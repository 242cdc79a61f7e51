"""Notices that never came: a rule or a policy that is not wired is silent, and looks like a quiet day.

Owns one question for each region: a machine of ours ended while we listened, did any message tell of it?
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.spi import Clock, ProviderId

_PATIENCE = timedelta(seconds=60)
_BEFORE = timedelta(minutes=10)
"""A warning precedes the end by two minutes, the listing that shows the end may be minutes late."""
_SETTLED = timedelta(seconds=60)
"""What the first listings show to have ended may have ended before we listened."""
_REMEMBERED = 20_000


@dataclass(slots=True, kw_only=True)
class _Region:
    listening_since: datetime | None = None
    missed: ProviderId | None = None
    missed_at: datetime | None = None


class Silence:
    def __init__(self, clock: Clock, *, regions: Iterable[str]) -> None:
        self._clock = clock
        self._regions = {region: _Region() for region in regions}
        self._expected: OrderedDict[ProviderId, tuple[str, datetime]] = OrderedDict()
        self._heard: OrderedDict[ProviderId, datetime] = OrderedDict()

    def listening(self, region: str) -> None:
        """A receive worked."""
        state = self._regions[region]
        if state.listening_since is None:
            state.listening_since = self._clock.now()

    def pause(self, region: str) -> None:
        """The queue fails: what is missed now says nothing of rules and policies."""
        self._regions[region].listening_since = None
        for provider_id in [one for one, (where, _) in self._expected.items() if where == region]:
            del self._expected[provider_id]

    def heard(self, region: str, ids: Iterable[ProviderId]) -> None:
        """Messages told of these machines of ours: the way works."""
        now = self._clock.now()
        for provider_id in ids:
            self._heard.pop(provider_id, None)
            self._heard[provider_id] = now
            self._expected.pop(provider_id, None)
            self._regions[region].missed = None
        while len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)

    def expect(self, provider_id: ProviderId, at: datetime, *, region: str) -> None:
        """This machine was seen to have ended, at `at`. Repeats change nothing."""
        state = self._regions.get(region)
        if state is None or state.listening_since is None or at < state.listening_since + _SETTLED:
            return  # nobody may have listened when it was told
        heard_at = self._heard.get(provider_id)
        if provider_id not in self._expected and (heard_at is None or heard_at < at - _BEFORE):
            self._expected[provider_id] = (region, max(at, self._clock.now()) + _PATIENCE)
            while len(self._expected) > _REMEMBERED:
                self._expected.popitem(last=False)

    def troubles(self) -> tuple[str, ...]:
        now = self._clock.now()
        for provider_id, (region, until) in list(self._expected.items()):
            if until <= now:
                del self._expected[provider_id]
                self._heard[provider_id] = now  # it is told once: listings show an ended machine for an hour
                state = self._regions[region]
                state.missed, state.missed_at = provider_id, until - _PATIENCE
        return tuple(
            f"notices: no message came for {state.missed}, which ended in {region} at {state.missed_at:%H:%M:%S}: "
            "check that EventBridge's rule matches EC2's events, that its target is the queue, and the queue's policy"
            for region, state in self._regions.items()
            if state.missed is not None
        )
