"""What is well and what is not: the conditions behind /readyz, kept by name with the instant they changed.

A condition may have parts, one for each kind of call: it is well only when none of them is ill, so that a call that
always fails stays in sight while others work. Its detail is that of the part that has been ill the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from autoscaler.http.view import Condition
from autoscaler.spi import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ill:
    detail: str
    remedy: str
    passes: bool
    until: datetime | None


class Health:
    """Conditions by name. A condition that was never set is not shown."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._conditions: dict[str, Condition] = {}
        self._ill: dict[str, dict[str, _Ill]] = {}

    def well(self, name: str, detail: str = "", *, part: str = "") -> None:
        """A part works, and with it all whose trouble passes as soon as anything works."""
        parts = self._ill.get(name, {})
        self._ill[name] = {other: ill for other, ill in parts.items() if other != part and not ill.passes}
        self._show(name, detail)

    def ill(
        self,
        name: str,
        detail: str,
        *,
        remedy: str = "",
        part: str = "",
        passes: bool = False,
        lasts: timedelta | None = None,
    ) -> None:
        """A part fails. `passes`: until any part works; otherwise until this one does. `lasts`: no longer than this
        unless said again, for what may never be asked again."""
        until = self._clock.now() + lasts if lasts is not None else None
        self._ill.setdefault(name, {})[part] = _Ill(detail=detail, remedy=remedy, passes=passes, until=until)
        self._show(name)

    def is_well(self, name: str) -> bool:
        """True also for what was never reported."""
        self._expire(name)
        condition = self._conditions.get(name)
        return condition is None or condition.is_well

    def conditions(self) -> Sequence[Condition]:
        for name in self._conditions:
            self._expire(name)
        return [self._conditions[name] for name in sorted(self._conditions)]

    def _expire(self, name: str) -> None:
        now = self._clock.now()
        parts = self._ill.get(name, {})
        lasting = {part: ill for part, ill in parts.items() if ill.until is None or ill.until > now}
        if len(lasting) < len(parts):
            self._ill[name] = lasting
            self._show(name)

    def _show(self, name: str, detail: str = "") -> None:
        oldest = next(iter(self._ill.get(name, {}).values()), None)
        is_well = oldest is None
        detail, remedy = (oldest.detail, oldest.remedy) if oldest is not None else (detail, "")
        before = self._conditions.get(name)
        if before is None or before.is_well != is_well:
            self._conditions[name] = Condition(
                name=name, is_well=is_well, detail=detail, since=self._clock.now(), remedy=remedy
            )
        elif (before.detail, before.remedy) != (detail, remedy):
            self._conditions[name] = replace(before, detail=detail, remedy=remedy)
