"""What is well and what is not: the conditions behind /readyz, kept by name with the instant they changed."""

from collections.abc import Sequence
from dataclasses import replace

from autoscaler.http.view import Condition
from autoscaler.spi import Clock


class Health:
    """Conditions by name. A condition that was never set is not shown."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._conditions: dict[str, Condition] = {}

    def well(self, name: str, detail: str = "") -> None:
        self._set(name, is_well=True, detail=detail, remedy="")

    def ill(self, name: str, detail: str, *, remedy: str = "") -> None:
        self._set(name, is_well=False, detail=detail, remedy=remedy)

    def is_well(self, name: str) -> bool:
        """True also for what was never reported."""
        condition = self._conditions.get(name)
        return condition is None or condition.is_well

    def conditions(self) -> Sequence[Condition]:
        return [self._conditions[name] for name in sorted(self._conditions)]

    def _set(self, name: str, *, is_well: bool, detail: str, remedy: str) -> None:
        before = self._conditions.get(name)
        if before is None or before.is_well != is_well:
            self._conditions[name] = Condition(
                name=name, is_well=is_well, detail=detail, since=self._clock.now(), remedy=remedy
            )
        elif before.detail != detail:
            self._conditions[name] = replace(before, detail=detail, remedy=remedy)
