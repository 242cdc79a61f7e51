"""How the sandbox's Compute Engine behaves where the real one may, or does, behave differently from day to day."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class GceBehaviour:
    """Times in seconds. Mutable, so that a test can change it while the face runs.

    An operation takes `operation_s`; one that follows a preemption shows up `told_after_s` after it. `unreachable`
    zones fail an aggregated listing; or they are only missing from it, with a warning, where the caller asked for
    partial success or `fails_when_unreachable` is off. `failing_page` is the page of each listing (from 1) that
    answers 503. `quota_at_once` and `stockout_at_once` answer the call itself with the error, not its operation.
    """

    knows_preemption_notice: bool = True
    operation_s: tuple[float, float] = (0.3, 1.0)
    told_after_s: tuple[float, float] = (0.0, 2.0)
    quota_at_once: bool = False
    stockout_at_once: bool = False
    unreachable: set[str] = field(default_factory=set)
    fails_when_unreachable: bool = True
    failing_page: int | None = None
