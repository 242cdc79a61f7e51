"""Part of plan: how many jobs of a run that is just coming are not seen yet.

Pure. The jobs of a run are seen one after the other, within seconds, and not in their order: webhooks overtake each
other. Those that are younger than a job bring machines that serve it first; those that are older start before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ANY_SIZE = 0.5
"""How many runs it is worth that a run may be of any size."""
LONGEST = 10
"""A run is not taken to have more than so many times what is seen of it."""
OVERTAKEN = 3
"""Webhooks overtake each other by tenths of a second: not more than so many jobs, and mostly fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """One possibility: so many machines will be launched for jobs that are not seen yet, so many of these are older."""

    chance: float
    more: int = 0
    older: int = 0


def unseen(size: int, others: Sequence[int], *, room: int, spare: int) -> Iterator[Unseen]:
    """The possibilities after so many jobs of a run, by what others had. `room` is how many machines may be launched,
    `spare` how many are on their way that no job waits for."""
    any_more = _beyond(size, 1, others)
    yield Unseen(chance=1.0 - any_more)
    for share in (5 / 6, 1 / 2, 1 / 6):
        rest = 1
        while rest < LONGEST * size and _beyond(size, rest + 1, others) >= share * any_more:
            rest += max(1, rest // 8)
        more, most_older = min(max(0, rest - spare), room), min(rest, OVERTAKEN)
        for older, part in ((0, 0.5), ((most_older + 2) // 3, 0.3), (most_older, 0.2)):
            yield Unseen(chance=any_more / 3 * part, more=more, older=older)


def _beyond(size: int, rest: int, others: Sequence[int]) -> float:
    """The chance that a run of which so many jobs are seen has so many more, from what others had, and a little as if
    it were of any size."""
    longer = [other for other in others if other >= size]
    any_size = size / (size + rest)
    return (sum(1 for other in longer if other >= size + rest) + any_size * ANY_SIZE) / (len(longer) + ANY_SIZE)
