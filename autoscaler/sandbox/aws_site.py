"""One account of the sandbox's AWS: its world, its services, its buses and queues, on one clock.

    world --happenings--> EventBridge --> SQS
                     +--> subscribers (what runs on the machines)

Owns the wiring and the passing of time. `AwsFace` puts it on the network.
"""

import random
from collections.abc import Callable, Sequence

from autoscaler.sandbox.aws_access import AwsAccess
from autoscaler.sandbox.aws_ec2 import Ec2
from autoscaler.sandbox.aws_ec2_render import STATES
from autoscaler.sandbox.aws_events import (
    CLOUDTRAIL,
    REBALANCE,
    STATE_CHANGE,
    WARNING,
    EventBus,
    MessageFaults,
    Rule,
    queue_policy,
)
from autoscaler.sandbox.aws_fis import Fis
from autoscaler.sandbox.aws_limits import AwsLimits, AwsMeter
from autoscaler.sandbox.aws_pricing import Priced, Pricing
from autoscaler.sandbox.aws_setup import AwsSetup, aws_pool
from autoscaler.sandbox.aws_small_services import ServiceQuotas, Ssm
from autoscaler.sandbox.aws_sqs import Queue, Sqs
from autoscaler.sandbox.aws_sts import Iam, Sts
from autoscaler.sandbox.aws_world import RECLAIMED, AwsWorld, Happening, HappeningKind, Machine, WorldPolicy
from autoscaler.sandbox.inprocess import WorldTimer
from autoscaler.spi import CapacityType, Clock, MachineState

ACCOUNT = "123456789012"
Subscriber = Callable[[Happening], None]


class AwsSite:
    """Everything behind one face. `notice_s` is the lead time of the site's own reclaims."""

    def __init__(
        self,
        clock: Clock,
        setup: AwsSetup,
        *,
        account: str = ACCOUNT,
        policy: WorldPolicy | None = None,
        limits: AwsLimits | None = None,
        notice_s: float = 120.0,
    ) -> None:
        self.account = account
        self.setup = setup
        self.notice_s = notice_s
        self.limits = limits or AwsLimits()
        self.message_faults = MessageFaults()
        self.subscribers: list[Subscriber] = []
        self._clock = clock
        self.world = AwsWorld(setup, policy=policy)
        self.access = AwsAccess(self._now, account=account)
        self.iam = Iam()
        self.ec2 = Ec2(self.world, AwsMeter(self.limits, self._now), self.iam, account=account)
        self.sqs, self.sts, self.ssm = Sqs(), Sts(), Ssm()
        self.quotas = ServiceQuotas(setup)
        self.pricing = Pricing(self._on_demand_prices)
        self.fis = Fis(find_spot=self._running_spot, rebalance=self._rebalance_all, interrupt=self._interrupt_all)
        dice = random.Random(f"{self.world.policy.seed}/events")  # noqa: S311 - repeatable faults, not secrets
        self.bus = EventBus(account=account, faults=self.message_faults, dice=dice)
        self._timer = WorldTimer(clock, next_at=self.world.next_due, due=self.settle)

    def add_queue(self, region: str, name: str) -> Queue:
        """A queue that the region's usual rule sends to."""
        queue = Queue(name, account=self.account, region=region, now=self._now())
        queue.policy = queue_policy(queue.arn)
        self.sqs.queues[region, name] = queue
        self.bus.rules[region] = Rule(queue=queue)
        return queue

    def settle(self) -> None:
        """Lets time pass, and tells of what happened. Call after every change of the world."""
        now = self._now()
        self.world.advance(now)
        self.ec2.launcher.fulfil(now)
        happened, self.world.outbox = self.world.outbox, []
        for happening in happened:
            self._emit(happening, now)
            for subscriber in self.subscribers:
                subscriber(happening)
        if happened:
            self.ec2.forget_gone()
        self._timer.reset()

    def reclaim(self, machine_id: str, *, notice_s: float | None = None) -> None:
        """Takes a spot machine as AWS does; 0 gives no notice."""
        lead_s = self.notice_s if notice_s is None else notice_s
        self.world.reclaim(machine_id, self._now(), notice_s=lead_s)
        self.settle()

    def power_off(self, machine_id: str) -> None:
        """The machine shut itself down."""
        self.world.power_off(machine_id, self._now())
        self.settle()

    def close(self) -> None:
        self._timer.stop()
        self.fis.close()

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _emit(self, happening: Happening, now: float) -> None:
        machine, at = happening.machine, happening.at
        region, detail = machine.capacity_pool.region, {"instance-id": machine.id}
        resources = [f"arn:aws:ec2:{region}:{self.account}:instance/{machine.id}"]
        match happening.kind:
            case HappeningKind.WARNING:
                stops = machine.specification.interruption == "stop"
                detail["instance-action"] = "stop" if stops else "terminate"
                # NTH has seen this second form of the ARN, specs A3; nobody may parse it.
                resources = [f"arn:aws:ec2:{machine.capacity_pool.zone}:instance/{machine.id}"]
                self.bus.emit(region, WARNING, detail, at=at, now=now, resources=resources)
            case HappeningKind.REBALANCE:
                self.bus.emit(region, REBALANCE, detail, at=at, now=now, resources=resources)
            case HappeningKind.STATE:
                detail["state"] = STATES[happening.state][1]
                self.bus.emit(region, STATE_CHANGE, detail, at=at, now=now, resources=resources)
                if happening.state is MachineState.TERMINATED and machine.reason == RECLAIMED:
                    evicted = {"eventName": "BidEvictedEvent", "serviceEventDetails": {"instanceIdSet": [machine.id]}}
                    self.bus.emit(region, CLOUDTRAIL, evicted, at=at, now=now)

    def _on_demand_prices(self) -> list[Priced]:
        now = self._now()
        return [
            Priced(
                region=region,
                machine_type=one.name,
                cpus=one.cpus,
                memory_gib=one.memory_gib,
                usd_hour=self.setup.price(aws_pool(region, one.zones[0], one.name, CapacityType.ON_DEMAND), now),
            )
            for (region, _), one in self.setup.types.items()
        ]

    def _running_spot(self, region: str, ids: Sequence[str]) -> list[str]:
        found = (self.world.machine(region, id_, self._now()) for id_ in ids)
        return [one.id for one in found if one is not None and _is_running_spot(one)]

    def _rebalance_all(self, region: str, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.world.rebalance(id_, self._now())

    def _interrupt_all(self, region: str, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.reclaim(id_)


def _is_running_spot(machine: Machine) -> bool:
    is_spot = machine.capacity_pool.capacity_type is CapacityType.SPOT
    return is_spot and machine.state is MachineState.RUNNING
