"""Faults that the sandbox's clouds commit on purpose, seeded so that a run can be repeated.

Owns the shares and the dice; what a fault looks like is the protocol of the face that commits it.
"""

import random
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class CloudFaults:
    """Shares from 0 to 1; mutable, so that a test can end the faults while the clouds run.

    Calls: `throttle` of all calls; `lost_answer` of those that change something take effect and are never answered;
    `internal_error` fail before they take effect. Launches: `refuse` of spot machines asked for although there is room;
    `stillborn` get an id and end as pending, for one of `stillborn_reasons`. Reclaims that the account itself begins:
    `no_notice` come without a word; `rebalance` are preceded by a recommendation. Boots: `slow_boot` take `slow_factor`
    as long; `silent` never run their user data. Messages: `doubled`, `late` (by `late_s`), `reordered`, `foreign` and
    `malformed` ones beside or instead of the true ones. Metadata: `unauthorized` answers of the metadata service to a
    valid token; `hanging` ones never come.
    """

    throttle: float = 0.0
    lost_answer: float = 0.0
    internal_error: float = 0.0
    refuse: float = 0.0
    stillborn: float = 0.0
    stillborn_reasons: tuple[str, ...] = (
        "Server.InsufficientInstanceCapacity",
        "Server.InternalError",
        "Client.VolumeLimitExceeded",
    )
    no_notice: float = 0.0
    rebalance: float = 0.0
    slow_boot: float = 0.0
    slow_factor: float = 5.0
    silent: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_s: float = 400.0
    reordered: float = 0.0
    foreign: float = 0.0
    malformed: float = 0.0
    unauthorized: float = 0.0
    hanging: float = 0.0
    clock_skew_s: float = 0.0
    """How far the cloud's clock is ahead of ours."""
    seed: int = 0
    _streams: dict[str, random.Random] = field(default_factory=dict, repr=False)

    def strikes(self, share: float, stream: str) -> bool:
        """Draw once; each stream has dice of its own, so that one use's draws do not shift another's."""
        return share > 0 and self.dice(stream).random() < share

    def dice(self, stream: str) -> random.Random:
        if stream not in self._streams:
            self._streams[stream] = random.Random(f"{self.seed}/{stream}")  # noqa: S311 - repeatable, no secrets
        return self._streams[stream]

    def end(self) -> None:
        """No more faults from now on."""
        for name in (
            *("throttle", "lost_answer", "internal_error", "refuse", "stillborn", "no_notice", "rebalance"),
            *("slow_boot", "silent"),
            *("doubled", "late", "reordered", "foreign", "malformed", "unauthorized", "hanging", "clock_skew_s"),
        ):
            setattr(self, name, 0.0)
