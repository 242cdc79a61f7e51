"""Launching a batch: few fleet requests, and never more machines than asked for, whatever is repeated.

    1. machines that the batch has already are found by their tag              (a repeat, a lost answer)
    2. offerings go into parts: one capacity type in one region, best first
    3. each part is asked for what is missing, by one CreateFleet (or, where machines shall be stopped, one
       RunInstances per spot capacity pool)
    4. what EC2 answers becomes machines and refusals

The client token is made of batch, part and attempt, not of the offerings: a repeat that asks for something else meets
IdempotentParameterMismatch instead of launching twice. Then, and when an answer is lost, only the tag tells what was
made; while it tells nothing the outcome is unknown, and the core asks again. A repeat begins with the part whose
answer was lost, and asks no other one before that has answered: what it made may not show yet.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from autoscaler.spi import (
    BatchToken,
    CapacityType,
    CapacityUnavailable,
    Clock,
    CloudInstance,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    MachineState,
    Offering,
    OutcomeUnknown,
    ProviderError,
    ProviderId,
    QuotaExceeded,
    Refusal,
    Unauthorized,
)
from providers.aws_catalog import AwsCatalog
from providers.aws_clients import AwsClients, Sdk
from providers.aws_errors import Context, TemplateGone, TokenBurnt, of_override
from providers.aws_machines import AwsMachines
from providers.aws_settings import AwsSettings
from providers.aws_tags import specifications, tags_of
from providers.aws_template import VERSION, AwsTemplates

_log = structlog.get_logger(__name__)

MOST_TYPES = 60
"""More overrides than this make no better fleet, and a longer request."""
_MOST_REMEMBERED = 1000
_TAGGED = ("fleet", "instance", "volume", "network-interface")
_LAUNCH = "ec2:CreateFleet, ec2:RunInstances and ec2:CreateTags"


Place = tuple[str, CapacityType]
"""Region and capacity type of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Offerings that one request may use: ranked, one region, one capacity type."""

    region: str
    capacity_type: CapacityType
    offerings: tuple[Offering, ...]

    @property
    def place(self) -> Place:
        return self.region, self.capacity_type


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a batch asked for last; `attempt` is the last one of a fleet."""

    place: Place | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """A RunInstances of a batch that nobody answered, as far as we know."""

    part: Place
    attempt: int
    offering: Offering
    request: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class _Launch:
    """One launch under way."""

    batch: LaunchBatch
    made: dict[ProviderId, CloudInstance] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    rounds: dict[Place, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Machines that ended count: the same token makes no more in all."""
        return max(0, self.batch.count - len(self.made))

    def client_token(self, part: Part) -> str:
        attempt = self.rounds.get(part.place, 0)
        self.rounds[part.place] = attempt + 1
        text = f"{self.batch.token}/{part.region}/{part.capacity_type}/{attempt}"
        return hashlib.sha256(text.encode()).hexdigest()


def parts_of(offerings: Sequence[Offering]) -> list[Part]:
    """In the order of their best offering."""
    found: dict[tuple[CapacityType, str], list[Offering]] = {}
    for offering in offerings:
        place = offering.capacity_pool
        found.setdefault((place.capacity_type, place.region), []).append(offering)
    return [
        Part(region=region, capacity_type=capacity_type, offerings=tuple(members))
        for (capacity_type, region), members in found.items()
    ]


class AwsLauncher:
    def __init__(
        self,
        settings: AwsSettings,
        clients: AwsClients,
        catalog: AwsCatalog,
        machines: AwsMachines,
        templates: AwsTemplates,
        *,
        deployment: str,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._catalog = catalog
        self._machines = machines
        self._templates = templates
        self._deployment = deployment
        self._clock = clock
        self._asked: dict[BatchToken, _Asked] = {}
        self._lost: dict[BatchToken, _Lost] = {}

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        """See `Provider.launch`."""
        state = _Launch(batch=batch)
        is_again = batch.is_repeat or batch.token in self._asked
        if is_again:
            await self._find_made(state)
        before = self._asked.setdefault(batch.token, _Asked())
        while len(self._asked) > _MOST_REMEMBERED:
            del self._asked[next(iter(self._asked))]
        failures: list[ProviderError] = []
        for part in sorted(parts_of(batch.offerings), key=lambda one: one.place != before.place):
            if not state.missing:
                break
            if part.place != before.place:
                self._asked[batch.token] = _Asked(place=part.place)
            try:
                await self._launch_part(part, state)
            except OutcomeUnknown:
                raise  # a repeat finds by the tag what the parts before have made
            except ProviderError as error:  # of this region; the others may do
                if is_again and not isinstance(error, InvalidRequest):
                    # It says nothing about what was asked before, and that may not show yet.
                    raise OutcomeUnknown(f"an earlier try may have made machines: {error}") from error
                failures.append(error)
                state.refusals += [Refusal(offering=one, error=error) for one in part.offerings]
                if is_again:
                    break
        if not state.made and failures and all(one.error in failures for one in state.refusals):
            raise failures[0]
        living = [one for one in state.made.values() if one.state is not MachineState.TERMINATED]
        ranks = {offering.capacity_pool: rank for rank, offering in enumerate(batch.offerings)}
        living.sort(key=lambda one: (ranks.get(one.capacity_pool, len(ranks)), one.provider_id))
        return LaunchResult(instances=tuple(living), refusals=tuple(state.refusals))

    async def _find_made(self, state: _Launch) -> None:
        """What an earlier try made, in whatever region: it may have been given other offerings."""
        token = state.batch.token
        try:
            for region in self._settings.regions:
                for machine in await self._machines.of_batch(token, region):
                    state.made[machine.provider_id] = machine
        except Unauthorized:
            raise
        except ProviderError as error:
            raise OutcomeUnknown(f"an earlier try may have made machines: {error}") from error

    async def _launch_part(self, part: Part, state: _Launch) -> None:
        before = state.missing
        try:
            if state.batch.is_stoppable and part.capacity_type is CapacityType.SPOT:
                await self._run_instances(part, state)
            else:
                await self._fleet(part, state)
        except (CapacityUnavailable, QuotaExceeded) as error:
            state.refusals += [Refusal(offering=one, error=error) for one in part.offerings]
        except TokenBurnt as error:
            await self._find_made(state)
            if state.missing == before:
                raise OutcomeUnknown(
                    f"an earlier try reached EC2, and its machines do not show yet: {error}"
                ) from error
        _log.info(
            "batch_part_launched",
            provider=self._settings.name,
            region=part.region,
            capacity_type=part.capacity_type,
            asked=before,
            made=before - state.missing,
            refusals=[str(refusal.error)[:160] for refusal in state.refusals[:3]],
        )

    # ------------------------------------------------------------------ fleets

    async def _fleet(self, part: Part, state: _Launch) -> None:
        asked = self._asked.get(state.batch.token, _Asked())
        if asked.place == part.place:
            state.rounds.setdefault(part.place, asked.attempt)
        token = state.client_token(part)
        try:
            answer = await self._create_fleet(part, state, token)
        except TemplateGone:
            is_spot = part.capacity_type is CapacityType.SPOT
            template = await self._templates.template(state.batch, part.region, is_spot=is_spot)
            self._templates.forget(part.region, template.name)
            self._asked[state.batch.token] = _Asked(place=part.place, attempt=state.rounds[part.place])
            answer = await self._create_fleet(part, state, state.client_token(part))
        except TokenBurnt:
            if state.missing == state.batch.count:
                raise
            # The try whose answer was lost asked for all of the batch: as it was, the request gets that answer now. A
            # token that was used makes nothing new, whatever is asked with it.
            answer = await self._create_fleet(part, state, token, count=state.batch.count)
        by_place = {(o.capacity_pool.machine_type, o.capacity_pool.zone): o for o in part.offerings}
        subnets = {subnet: zone for zone, subnet in (await self._catalog.subnets(part.region)).items()}
        for made in answer.get("Instances", ()):
            offering = by_place.get(_place_of(made, subnets))
            for id_ in made.get("InstanceIds", ()):
                self._note(ProviderId(id_), offering or part.offerings[0], state)
        self._clients.not_launched(state.missing)
        context = self._context(part)
        refused: dict[str, Refusal] = {}
        for error in answer.get("Errors", ()):
            found = by_place.get(_place_of(error, subnets))
            for offering in (found,) if found is not None else part.offerings:
                meant = of_override(str(error.get("ErrorCode")), str(error.get("ErrorMessage", "")), offering, context)
                refused.setdefault(offering.capacity_pool.key, Refusal(offering=offering, error=meant))
        if not state.made and refused and all(_is_fatal(one.error) for one in refused.values()):
            raise next(iter(refused.values())).error
        if state.missing and not refused:
            short = CapacityUnavailable(f"{part.region}: the fleet made fewer machines than asked, without a word")
            refused = {one.capacity_pool.key: Refusal(offering=one, error=short) for one in part.offerings}
        state.refusals += refused.values()

    async def _create_fleet(
        self, part: Part, state: _Launch, token: str, *, count: int | None = None
    ) -> Mapping[str, Any]:
        request = await self._fleet_request(part, state, token, count=count or state.missing)
        answer: Mapping[str, Any] = await self._clients.write(
            lambda sdk: sdk.client("ec2", part.region).create_fleet(**request),
            self._context(part),
            machines=state.missing,
        )
        return answer

    async def _fleet_request(self, part: Part, state: _Launch, token: str, *, count: int) -> dict[str, Any]:
        batch, is_spot = state.batch, part.capacity_type is CapacityType.SPOT
        template = await self._templates.name_for(batch, part.region, is_spot=is_spot)
        subnets = await self._catalog.subnets(part.region)
        overrides = []
        for rank, offering in enumerate(_of_few_types(part.offerings)):
            place = offering.capacity_pool
            if place.zone not in subnets:
                continue
            override: dict[str, Any] = {
                "InstanceType": place.machine_type,
                "SubnetId": subnets[place.zone],
                "AvailabilityZone": place.zone,
            }
            if not is_spot:
                override["Priority"] = float(rank)
            overrides.append(override)
        if not overrides:
            raise InvalidRequest(f"networks.{part.region}.subnets: none of them is in a zone of the chosen offerings")
        specification = {"LaunchTemplateName": template, "Version": VERSION}
        return {
            "Type": "instant",
            "ClientToken": token,
            "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": specification, "Overrides": overrides}],
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": count,
                "DefaultTargetCapacityType": "spot" if is_spot else "on-demand",
                "SpotTargetCapacity": count if is_spot else 0,
                "OnDemandTargetCapacity": 0 if is_spot else count,
            },
            "SpotOptions": {"AllocationStrategy": "price-capacity-optimized"},
            "OnDemandOptions": {"AllocationStrategy": "prioritized"},
            "TagSpecifications": specifications(tags_of(self._deployment, batch), _TAGGED),
        }

    # ------------------------------------------------------------------ machines that shall be stopped

    async def _run_instances(self, part: Part, state: _Launch) -> None:
        """Persistent requests, capacity pool by capacity pool: instant fleets make machines that cannot be stopped."""
        template = await self._templates.name_for(state.batch, part.region, is_spot=True)
        subnets = await self._catalog.subnets(part.region)
        tags = tags_of(self._deployment, state.batch)
        lost = self._lost.get(state.batch.token)
        if lost is not None and lost.part == part.place:
            # As it was it gets the lost answer; one before it that was refused would by now perhaps launch as well.
            state.rounds[lost.part] = lost.attempt + 1
            await self._run(lost.request, lost.offering, part, state)
        for offering in part.offerings:
            if not state.missing:
                return
            request = {
                "LaunchTemplate": {"LaunchTemplateName": template, "Version": VERSION},
                "InstanceType": offering.capacity_pool.machine_type,
                "SubnetId": subnets.get(offering.capacity_pool.zone, ""),
                "MinCount": 1,
                "MaxCount": state.missing,
                "ClientToken": state.client_token(part),
                "InstanceMarketOptions": {
                    "MarketType": "spot",
                    "SpotOptions": {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"},
                },
                "TagSpecifications": specifications(tags, (*_TAGGED[1:], "spot-instances-request")),
            }
            try:
                await self._run(request, offering, part, state)
            except TemplateGone:
                self._templates.forget(part.region, template)
                template = await self._templates.name_for(state.batch, part.region, is_spot=True)
                await self._run({**request, "ClientToken": state.client_token(part)}, offering, part, state)

    async def _run(self, request: Mapping[str, Any], offering: Offering, part: Part, state: _Launch) -> None:
        def run(sdk: Sdk) -> Mapping[str, Any]:
            answer: Mapping[str, Any] = sdk.client("ec2", part.region).run_instances(**request)
            return answer

        token = state.batch.token
        self._lost[token] = _Lost(
            part=part.place, attempt=state.rounds[part.place] - 1, offering=offering, request=request
        )
        while len(self._lost) > _MOST_REMEMBERED:
            del self._lost[next(iter(self._lost))]
        try:
            context = self._context(part, machine_type=offering.capacity_pool.machine_type)
            answer = await self._clients.write(run, context, machines=state.missing)
        except (CapacityUnavailable, QuotaExceeded) as error:
            self._lost.pop(token, None)
            state.refusals.append(Refusal(offering=offering, error=error))
            return
        self._lost.pop(token, None)
        for instance in answer["Instances"]:
            request_id = instance.get("SpotInstanceRequestId", "")
            self._note(ProviderId(instance["InstanceId"]), offering, state, spot_request=request_id)
        self._clients.not_launched(state.missing)

    # ------------------------------------------------------------------ parts of it

    def _note(self, id_: ProviderId, offering: Offering, state: _Launch, *, spot_request: str = "") -> None:
        if id_ in state.made:
            return  # found by its tag, which tells more
        self._machines.note_launched(id_, offering.capacity_pool.region, spot_request=spot_request)
        batch = state.batch
        state.made[id_] = CloudInstance(
            provider=self._settings.name,
            provider_id=id_,
            token=batch.token,
            pool=batch.pool,
            state=MachineState.PENDING,
            capacity_pool=offering.capacity_pool,
            price_usd_hour=offering.price_usd_hour,
            launched_at=self._clock.now(),
        )

    def _context(self, part: Part, *, machine_type: str = "") -> Context:
        return Context(
            doing=f"launch {part.capacity_type} machines in {part.region}",
            permission=_LAUNCH,
            region=part.region,
            is_write=True,
            family="launches",
            machine_type=machine_type,
        )


def _is_fatal(error: ProviderError) -> bool:
    return isinstance(error, InvalidRequest | Unauthorized)


def _of_few_types(offerings: Sequence[Offering]) -> Iterator[Offering]:
    types: set[str] = set()
    for offering in offerings:
        if len(types) < MOST_TYPES or offering.capacity_pool.machine_type in types:
            types.add(offering.capacity_pool.machine_type)
            yield offering


def _place_of(entry: Mapping[str, Any], subnets: Mapping[str, str]) -> tuple[str, str]:
    """(machine type, zone) of an entry of a fleet's answer. Newer answers say both at the top, older ones only echo the
    override, and that in part."""
    override = entry.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
    machine_type = entry.get("InstanceType") or override.get("InstanceType", "")
    subnet = entry.get("SubnetId") or override.get("SubnetId", "")
    zone = entry.get("AvailabilityZone") or override.get("AvailabilityZone") or subnets.get(subnet, "")
    return machine_type, zone
