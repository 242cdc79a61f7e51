"""The machines of a cloud account as EC2 knows them: where a launch goes, what refuses, what EC2 keeps of each.

Owns no state of a machine: `cloud_account` does. What EC2 remembers beside it (specification, subnet, reservation) is
a `Launched` by machine id.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.sandbox.aws_ec2_specification import Specification
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_setup import AwsSetup, Image, Subnet, unsupported
from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Shortage
from autoscaler.sandbox.cloud_machines import Machine, Wish
from autoscaler.spi import CapacityPool, CapacityType


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A capacity pool and the subnet in it that a launch may use, with the whole specification there."""

    capacity_pool: CapacityPool
    subnet: Subnet
    image: Image
    specification: Specification


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What EC2 remembers of a machine's launch beside what the account knows."""

    place: Place
    reservation: str
    index: int
    cpus: int
    client_token: str = ""

    @property
    def specification(self) -> Specification:
        return self.place.specification


Made = list[tuple[Place, Machine]]
Refused = list[tuple[Place, AwsError]]


class AwsWorld:
    """An account's machines, launched at places."""

    def __init__(self, account: CloudAccount, setup: AwsSetup) -> None:
        self.account = account
        self.setup = setup
        self.launched: dict[str, Launched] = {}

    def launch(
        self, places: Sequence[Place], *, count: int, now: float, at_least: int = 0, spread: bool = False
    ) -> tuple[Made, Refused]:
        """Up to `count` machines, filling the places in order or `spread` evenly; and the places that refused.

        With room for fewer than `at_least`, none are made."""
        made: Made = []
        refused: Refused = []
        if at_least > 1 and (found := self._too_small(places, at_least, now)):
            return made, found
        open_places, taken = list(places), Counter[int]()
        while open_places and len(made) < count:
            place = min(open_places, key=lambda one: taken[id(one)]) if spread else open_places[0]
            machine = self._launch_one(place, now)
            if isinstance(machine, AwsError):
                open_places = [one for one in open_places if one is not place]
                refused.append((place, machine))
            else:
                taken[id(place)] += 1
                made.append((place, machine))
        return made, refused

    def _launch_one(self, place: Place, now: float) -> Machine | AwsError:
        pool, specification = place.capacity_pool, place.specification
        if code := self.setup.refusals.get(pool):
            return AwsError(code, f"{code}: {pool.key}", status=500)
        most, price = specification.max_price, self.account.price(pool, now)
        if pool.capacity_type is CapacityType.SPOT and most and float(most) < price:
            return AwsError("SpotMaxPriceTooLow", f"Your Spot request price of {most} is lower than {price:.6f}.")
        if place.subnet.free_addresses <= 0:
            return _no_addresses(place.subnet)
        wish = Wish(
            image=place.image.id,
            user_data=specification.decoded_user_data().decode(errors="replace"),
            tags=dict(specification.tags.get("instance", {})),
            stops_when_taken=specification.interruption == "stop",
            powers_off_to_stop=specification.shutdown != "terminate",
        )
        machine = self.account.launch(pool, wish, now)
        if isinstance(machine, Shortage):
            return self._refusal(machine, pool, place.subnet)
        place.subnet.free_addresses -= 1
        return machine

    def _refusal(self, shortage: Shortage, pool: CapacityPool, subnet: Subnet) -> AwsError:
        match shortage:
            case Shortage.CAPACITY:
                return _no_capacity(pool)
            case Shortage.QUOTA:
                return _over_quota(pool, self.setup.quota(pool.region, pool.capacity_type))
            case Shortage.ADDRESSES:
                return _no_addresses(subnet)
            case Shortage.UNSUPPORTED:
                return unsupported(pool.machine_type, pool.zone)

    def _too_small(self, places: Sequence[Place], at_least: int, now: float) -> Refused:
        """Every place with its refusal, where all together have too little room."""
        capacity = self.account.capacity
        room = {place.capacity_pool: capacity.free(place.capacity_pool, now) for place in places}
        if sum(room.values()) >= at_least:
            return []
        return [(place, _no_capacity(place.capacity_pool)) for place in places]

    # -- machines that exist ------------------------------------------------------------------------------------

    def machines(self, region: str, now: float) -> list[Machine]:
        """Those of a region that are shown, oldest first."""
        launched = self.launched
        return [one for one in self.account.listed(now) if one.capacity_pool.region == region and one.id in launched]

    def machine(self, region: str, id_: str, now: float) -> Machine | None:
        """One that is shown, or nothing."""
        machine = self.account.machine(id_, now)
        if machine is None or machine.capacity_pool.region != region or id_ not in self.launched:
            return None
        return machine

    def start(self, machines: Sequence[Machine], now: float) -> None:
        """Raises AwsError where a capacity pool has no room for all of them; none is started then."""
        wanted = Counter(one.capacity_pool for one in machines)
        for pool, count in wanted.items():
            if code := self.setup.refusals.get(pool):
                raise AwsError(code, f"{code}: {pool.key}", status=500)
            if self.account.capacity.free(pool, now) < count:
                raise _no_capacity(pool)
        for machine in machines:
            shortage = self.account.start(machine.id, now)
            if shortage is not None:
                raise self._refusal(shortage, machine.capacity_pool, self.launched[machine.id].place.subnet)

    def ended(self, machine_id: str) -> None:
        """The machine gave its address back."""
        if machine_id in self.launched:
            self.launched[machine_id].place.subnet.free_addresses += 1

    def forget_gone(self) -> list[str]:
        """Ids that the account no longer knows, and now we neither."""
        if len(self.launched) <= len(self.account.machines):
            return []
        gone = [id_ for id_ in self.launched if id_ not in self.account.machines]
        for id_ in gone:
            del self.launched[id_]
        return gone


def _no_capacity(pool: CapacityPool) -> AwsError:
    message = f"We currently do not have sufficient {pool.machine_type} capacity in the Availability Zone you requested"
    return AwsError("InsufficientInstanceCapacity", f"{message} ({pool.zone}).", status=500)


def _no_addresses(subnet: Subnet) -> AwsError:
    message = f"There are not enough free addresses in subnet '{subnet.id}' to satisfy the requested number of"
    return AwsError("InsufficientFreeAddressesInSubnet", f"{message} instances.")


def _over_quota(pool: CapacityPool, limit: float) -> AwsError:
    if pool.capacity_type is CapacityType.SPOT:
        return AwsError("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    message = f"You have requested more vCPU capacity than your current vCPU limit of {limit:g} allows"
    return AwsError("VcpuLimitExceeded", f"{message} for the instance bucket of {pool.machine_type}.")
