"""Words that all answers to "why" share: durations, sentences, where a machine is. Pure."""

from datetime import UTC, datetime, timedelta

from autoscaler.model import Instance, InstanceState, Interruption
from autoscaler.spi import CapacityType

MOVE_WORDS = {
    InstanceState.REQUESTED: "was asked for",
    InstanceState.LAUNCHED: "was launched",
    InstanceState.READY: "is ready",
    InstanceState.REGISTERING: "gets a runner's registration",
    InstanceState.IDLE: "has its runner online",
    InstanceState.BUSY: "took the job",
    InstanceState.DRAINING: "is being reclaimed",
    InstanceState.STOPPING: "is being stopped",
    InstanceState.STOPPED: "was stopped",
    InstanceState.STARTING: "is being started",
    InstanceState.TERMINATING: "is being ended",
    InstanceState.TERMINATED: "ended",
}


def ago(span: timedelta) -> str:
    """A duration in at most two units: "12 s", "3 min 20 s", "2 h 5 min", "4 d 1 h"."""
    seconds = max(0, round(span.total_seconds()))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit} {rest} {smaller}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"


def clock(at: datetime) -> str:
    """ "12:03:10 UTC": people read it in every time zone."""
    return f"{at.astimezone(UTC):%H:%M:%S} UTC"


def sentence(words: str) -> str:
    """A reason as one sentence: a capital letter first, a full stop last."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def because(reason: str) -> str:
    return f" ({reason.rstrip('.')})" if reason else ""


def where(machine: Instance) -> str:
    """ "m7i.large in eu-central-1a", with what else sets its price apart."""
    place = machine.capacity_pool
    if place is None:
        return str(machine.provider)
    bought = ", on demand" if place.capacity_type is CapacityType.ON_DEMAND else ""
    return f"{place.machine_type} in {place.zone}{bought}"


def taker(taken: Interruption) -> str:
    """Who takes a machine: its cloud, or a game day that had it do so."""
    return f"a game day at {taken.provider}" if taken.is_game_day else str(taken.provider)


def listed(names: list[str], *, most: int = 3) -> str:
    """ "a", "a and b", "a, b and 4 more"."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
