"""One machine of the sandbox's clouds, and what can happen to it. Mutable rows, changed by `cloud_account` alone.

PENDING --boot--> RUNNING --terminate--> TERMINATING --> TERMINATED --kept_s--> forgotten
   |                 +-- stop --> STOPPING --> STOPPED --start--> PENDING
   +-- stillborn     +-- powers itself off, is taken --> TERMINATED (or STOPPED, where it stops on a reclaim)
"""

from dataclasses import dataclass, field
from enum import StrEnum

from autoscaler.spi import CapacityPool, MachineState

TAKEN = "Server.SpotInstanceTermination"
TAKEN_AND_STOPPED = "Server.SpotInstanceShutdown"
BY_ITSELF = "Client.InstanceInitiatedShutdown"
BY_USER = "Client.UserInitiatedShutdown"
NO_CAPACITY = "Server.InsufficientInstanceCapacity"
BROKEN = "Server.InternalError"


class Happening(StrEnum):
    """What a cloud tells, or what must happen outside of it."""

    BOOTED = "booted"
    """Power is on: its user data runs."""
    POWER_LOST = "power_lost"
    """Whatever runs on it is gone."""
    WARNED = "warned"
    """It will be taken at `reclaim_at`."""
    REBALANCE = "rebalance"
    STATE = "state"
    """Its state is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a machine at a time; `state` is what it was in then."""

    kind: Happening
    machine: "Machine"
    at: float
    state: MachineState


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of a new machine. `stops_when_taken`: it keeps its disk when the cloud takes it. `tags` are what
    its metadata service tells: EC2's tags, Google's metadata items (but the start-up script, which is `user_data`)."""

    image: str
    user_data: str
    tags: dict[str, str] = field(default_factory=dict)
    id: str = ""
    """Google's number for it, which its face gives; elsewhere the account makes one."""
    name: str = ""
    """Google's name for it."""
    stops_when_taken: bool = False
    powers_off_to_stop: bool = False
    """Its own shutdown stops it instead of ending it."""


@dataclass(slots=True, kw_only=True)
class Machine:
    """See the module docstring. Times are epoch seconds; `number` counts an account's machines."""

    id: str
    number: int
    capacity_pool: CapacityPool
    wish: Wish
    price_usd_hour: float
    launched_at: float
    started_at: float
    shown_at: float
    address: str
    tags: dict[str, str]
    arch: str = "x86_64"
    state: MachineState = MachineState.PENDING
    history: list[tuple[float, MachineState, str]] = field(default_factory=list)
    """Every state it came into: when, which, and the reason."""
    changed_at: float = 0.0
    reason: str = ""
    """Why it is in its state, where somebody or something caused it: "Client.UserInitiatedShutdown"."""
    noticed_at: float | None = None
    reclaim_at: float | None = None
    rebalanced_at: float | None = None
    chosen_for: float | None = None
    """When the cloud takes it, as only the cloud knows."""
    was_taken: bool = False
    ended_at: float | None = None
    stopped_at: float | None = None
    spot_request_id: str = ""
    life: int = 0
    """Counts its power-ons, so that what was planned for an earlier one does not happen to a later one."""

    @property
    def is_up(self) -> bool:
        return self.state in (MachineState.PENDING, MachineState.RUNNING)

    @property
    def has_ended(self) -> bool:
        return self.state is MachineState.TERMINATED
