"""One account of the sandbox's AWS: its machines, its services, its buses and queues, on one clock.

    cloud account --driver--> events --> EventBridge --> SQS
                                  +----> hosts and others who listen to the driver

Owns the wiring. `AwsFace` puts it on the network.
"""

from collections.abc import Mapping, Sequence

from autoscaler.sandbox.aws_access import AwsAccess
from autoscaler.sandbox.aws_ec2 import Ec2
from autoscaler.sandbox.aws_ec2_render import STATES
from autoscaler.sandbox.aws_events import CLOUDTRAIL, REBALANCE, STATE_CHANGE, WARNING, EventBus, Rule, queue_policy
from autoscaler.sandbox.aws_fis import Fis
from autoscaler.sandbox.aws_limits import AwsLimits, AwsMeter
from autoscaler.sandbox.aws_pricing import Priced, Pricing
from autoscaler.sandbox.aws_setup import AwsSetup
from autoscaler.sandbox.aws_small_services import ServiceQuotas, Ssm
from autoscaler.sandbox.aws_sqs import Queue, Sqs
from autoscaler.sandbox.aws_sts import Iam, Sts
from autoscaler.sandbox.aws_world import AwsWorld
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import TAKEN, Event, Happening
from autoscaler.spi import CapacityType, MachineState


class AwsSite:
    """Everything behind one face. The driver is the caller's: who starts it closes it."""

    def __init__(self, driver: CloudDriver, *, limits: AwsLimits | None = None) -> None:
        self.driver = driver
        self.cloud = driver.account
        self.account = driver.account.account
        self.faults = driver.account.faults
        self.setup = AwsSetup(driver.account.capacity)
        self.limits = limits or AwsLimits()
        self.world = AwsWorld(driver.account, self.setup)
        self.access = AwsAccess(self._now, account=self.account, skew_s=lambda: self.faults.clock_skew_s)
        self.access.regions = lambda: self.setup.regions
        self.iam = Iam()
        self.sqs, self.sts, self.ssm = Sqs(), Sts(), Ssm()
        meter = AwsMeter(self.limits, self._now)
        self.ec2 = Ec2(self.world, meter, iam=self.iam, ssm=self.ssm, account=self.account)
        self.quotas = ServiceQuotas(self.setup)
        self.pricing = Pricing(self._on_demand_prices)
        self.fis = Fis(find_spot=self._running_spot, rebalance=self._rebalance_all, interrupt=self._reclaim_all)
        self.bus = EventBus(account=self.account, faults=self.faults)
        driver.listen(self._hear)

    def add_queue(self, region: str, name: str) -> Queue:
        """A queue that the region's usual rule sends to."""
        queue = Queue(name, account=self.account, region=region, now=self._now())
        queue.policy = queue_policy(queue.arn)
        self.sqs.queues[region, name] = queue
        self.bus.rules[region] = Rule(queue=queue)
        return queue

    def settle(self) -> None:
        """Call after every change: persistent spot requests are served, time passes, events are told."""
        self.ec2.launcher.fulfil(self._now())
        self.driver.settle()
        self.ec2.forget_gone()

    def reclaim(self, machine_id: str, *, notice_s: float | None = None) -> None:
        """Takes a machine as AWS does, the account's notice first; 0 gives none."""
        self.cloud.reclaim(machine_id, self._now(), notice_s=notice_s)
        self.settle()

    def close(self) -> None:
        self.fis.close()

    def _now(self) -> float:
        return self.driver.now

    def _hear(self, event: Event) -> None:
        machine, at, now = event.machine, event.at, self._now()
        region, detail = machine.capacity_pool.region, {"instance-id": machine.id}
        arn = f"arn:aws:ec2:{region}:{self.account}:instance/{machine.id}"
        match event.kind:
            case Happening.WARNED:
                detail["instance-action"] = "stop" if machine.wish.stops_when_taken else "terminate"
                # Seen on real queues with the zone and without the account (specs A3): nobody may parse it.
                odd_arn = f"arn:aws:ec2:{machine.capacity_pool.zone}:instance/{machine.id}"
                self.bus.emit(region, WARNING, detail, at=at, now=now, resources=[odd_arn])
            case Happening.REBALANCE:
                self.bus.emit(region, REBALANCE, detail, at=at, now=now, resources=[arn])
            case Happening.STATE:
                detail["state"] = STATES[event.state][1]
                self.bus.emit(region, STATE_CHANGE, detail, at=at, now=now, resources=[arn])
                if event.state is MachineState.TERMINATED:
                    self._hear_of_end(event, now)
            case _:
                return

    def _hear_of_end(self, event: Event, now: float) -> None:
        machine, region = event.machine, event.machine.capacity_pool.region
        self.world.ended(machine.id)
        self.ec2.launcher.fulfil(now)
        if machine.reason == TAKEN:
            detail: Mapping[str, object] = {
                "eventName": "BidEvictedEvent",
                "serviceEventDetails": {"instanceIdSet": [machine.id]},
            }
            self.bus.emit(region, CLOUDTRAIL, dict(detail), at=event.at, now=now)

    def _on_demand_prices(self) -> list[Priced]:
        now = self._now()
        found = {
            (pool.region, pool.machine_type): Priced(
                region=pool.region,
                machine_type=pool.machine_type,
                cpus=supply.cpus,
                memory_gib=supply.memory_gib,
                usd_hour=supply.price_at(now),
            )
            for pool, supply in self.setup.capacity.supplies.items()
            if pool.capacity_type is CapacityType.ON_DEMAND
        }
        return list(found.values())

    def _running_spot(self, region: str, ids: Sequence[str]) -> list[str]:
        found = (self.world.machine(region, id_, self._now()) for id_ in ids)
        return [
            one.id
            for one in found
            if one is not None
            and one.state is MachineState.RUNNING
            and one.capacity_pool.capacity_type is CapacityType.SPOT
        ]

    def _rebalance_all(self, region: str, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.cloud.rebalance(id_, self._now())

    def _reclaim_all(self, region: str, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.reclaim(id_)
