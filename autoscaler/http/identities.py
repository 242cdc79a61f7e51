"""What a proven identity must agree with, and what becomes of those that agree with no row of ours.

A provider proves which machine sent a hello; here that is held against what we launched: machine type, zone, address,
and a start within the time of our launch (specs: identity 1.6). All refusals look alike to the caller; the reason is in
the log, the metric and, where the operator should know, among the alarms. Pure but for what is remembered.
"""

from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime, timedelta

from autoscaler.http.view import Trouble
from autoscaler.model import Instance
from autoscaler.spi import Clock, Identity, ProviderId, ProviderName

START_SKEW = timedelta(seconds=60)
"""How far the clocks of a cloud and of this host may be apart."""
UNKNOWN_FOR = timedelta(minutes=2)
"""Clouds list eventually, and a launch's answer takes its time: so long a proven machine may be unknown to us."""
REMEMBERED_STRANGERS = 1000
ALARM_LASTS = timedelta(hours=1)
REMEMBERED_ALARMS = 20


def mismatch(identity: Identity, row: Instance, *, address: str, now: datetime) -> str:
    """In what a proven identity differs from its row: "type", "zone", "address", "window"; "" where in nothing. What
    either side does not say differs in nothing."""
    place = row.capacity_pool
    if place is not None and identity.machine_type not in ("", place.machine_type):
        return "type"
    if place is not None and identity.zone not in ("", place.zone):
        return "zone"
    if address and identity.address not in ("", address):
        return "address"
    started_at = identity.started_at
    if started_at is not None and not row.created_at - START_SKEW <= started_at <= now + START_SKEW:
        return "window"
    return ""


class Strangers:
    """Machines with valid evidence that no row knows, and since when they ask."""

    def __init__(self) -> None:
        self._since: OrderedDict[tuple[ProviderName, ProviderId], datetime] = OrderedDict()

    def is_overdue(self, provider: ProviderName, id_: ProviderId, now: datetime) -> bool:
        """Whether it has been unknown for so long that it will stay so."""
        since = self._since.setdefault((provider, id_), now)
        if len(self._since) > REMEMBERED_STRANGERS:
            self._since.popitem(last=False)
        return since + UNKNOWN_FOR <= now

    def forget(self, provider: ProviderName, id_: ProviderId) -> None:
        self._since.pop((provider, id_), None)


class Alarms:
    """What the operator should know of claims and identities, for an hour each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._texts: OrderedDict[tuple[str, str], tuple[str, datetime]] = OrderedDict()

    def second_claim(self, row: Instance) -> None:
        """After the first one already had a registration: one of the two is a thief, and may be the first."""
        self._raise(
            row.provider,
            row.id,
            f"machine {row.id} was claimed a second time, with valid evidence, after its registration was handed out: "
            "look at who could read its identity document, and at what its job did",
        )

    def identity_refused(self, row: Instance, reason: str, identity: Identity) -> None:
        if reason == "window":
            started_at = identity.started_at or self._clock.now()
            text = (
                f"machines are refused: by its cloud {row.id} started at {started_at:%H:%M:%S}, and by this host's "
                f"clock it was asked for at {row.created_at:%H:%M:%S}: set this host's clock by NTP"
            )
        else:
            text = (
                f"machine {row.id} was refused: the {reason} that its cloud signed is not what was launched; if nobody "
                "changed the machine, somebody else sent its identity"
            )
        self._raise(row.provider, reason, text)

    def _raise(self, target: str, about: str, text: str) -> None:
        self._texts[target, about] = text, self._clock.now()
        self._texts.move_to_end((target, about))
        if len(self._texts) > REMEMBERED_ALARMS:
            self._texts.popitem(last=False)

    def troubles(self) -> Sequence[Trouble]:
        oldest = self._clock.now() - ALARM_LASTS
        return [Trouble(target=key[0], text=text) for key, (text, at) in self._texts.items() if at > oldest]
