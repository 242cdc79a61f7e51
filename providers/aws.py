"""The `aws` provider: spot and on-demand machines of one AWS account, in one or several regions.

Owns the Provider contract; the parts are beside it:

    aws_settings    options                        aws_launch      batches, repeats, refusals
    aws_clients     SDK, threads, rate budgets     aws_template    launch templates
    aws_errors      what error codes mean          aws_tags        what we write on everything
    aws_catalog     zones, types, prices           aws_machines    listings (aws_describe reads them leanly)
    aws_images      images and their root disks    aws_power       ending, stopping, starting, reclaiming
    aws_identity    identity documents             aws_fis         game days
    aws_notices     the queues                     aws_check       faults of the configuration

Nothing is kept on disk: a restarted daemon finds its machines by tag, and its launches under way by client token.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from autoscaler.spi import (
    CapacityType,
    CloudInstance,
    Evidence,
    Finding,
    Identity,
    LaunchBatch,
    LaunchResult,
    MachineState,
    Notice,
    Offering,
    Provider,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderSettings,
    ProviderStatus,
    ProviderTraits,
    Shape,
    Surroundings,
)
from providers.aws_catalog import AwsCatalog
from providers.aws_check import AwsCheck
from providers.aws_clients import AwsClients
from providers.aws_fis import AwsFis
from providers.aws_identity import AwsIdentity, parse_anchors
from providers.aws_images import AwsImages
from providers.aws_launch import AwsLauncher
from providers.aws_machines import AwsMachines
from providers.aws_notices import AwsNotices
from providers.aws_power import AwsPower
from providers.aws_settings import AwsSettings, parse
from providers.aws_template import AwsTemplates

_CLEAN_EVERY = timedelta(hours=6)
_SWEEP_EVERY = timedelta(hours=1)
_TRAITS = ProviderTraits(
    stoppable=frozenset(CapacityType),
    minimum_billed_s=60.0,
    reclaimed_free_s=3600.0,
    stopped_share=0.017,
)
"""A minute per start; nothing for what EC2 takes within the first hour (both: AWS's spot billing page). A stopped
machine costs its disk: 30 GB of gp3 against an m7i.xlarge."""


def create(settings: ProviderSettings, surroundings: Surroundings) -> Provider:
    """Entry point. Opens no connection. Raises SettingsError."""
    return AwsProvider(parse(settings), surroundings)


class AwsProvider:
    """See `autoscaler.spi.Provider`."""

    def __init__(self, settings: AwsSettings, surroundings: Surroundings) -> None:
        clock, gates, deployment = surroundings.clock, surroundings.gates, surroundings.deployment
        self._name = settings.name
        self._clock = clock
        clients = self._clients = AwsClients(settings, gates, clock)
        self._catalog = AwsCatalog(settings, clients, clock)
        self._machines = AwsMachines(settings, clients, self._catalog, deployment=deployment, clock=clock)
        images = AwsImages(clients, clock)
        self._templates = AwsTemplates(settings, clients, images, clock, deployment=deployment)
        self._launcher = AwsLauncher(
            settings, clients, self._catalog, self._machines, self._templates, deployment=deployment, clock=clock
        )
        self._power = AwsPower(settings, clients, self._machines)
        self._notices = AwsNotices(
            settings.queues,
            account=settings.account,
            client=lambda region: clients.sdk.client("sqs", region),
            knows=self._machines.knows,
            gates=gates,
            clock=clock,
            name=settings.name,
        )
        self._fis = AwsFis(
            role=settings.fis_role,
            account=settings.account,
            deployment=deployment,
            client=lambda region: clients.sdk.client("fis", region),
            gates=gates,
            clock=clock,
            name=settings.name,
        )
        self._identity = AwsIdentity(
            account=settings.account,
            regions=settings.regions,
            anchors=parse_anchors(settings.anchors),
            trusts_peer_address=settings.trusts_peer_address,
            clock=clock,
        )
        self._check = AwsCheck(settings, clients, self._catalog, images, self._identity, clock, deployment=deployment)
        self._cleaned_at = clock.now()
        self._swept_at: datetime | None = None
        self._gone: set[ProviderId] = set()

    @property
    def name(self) -> ProviderName:
        return self._name

    @property
    def traits(self) -> ProviderTraits:
        return _TRAITS

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        return await self._catalog.offerings(shape)

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        return await self._launcher.launch(batch)

    async def list_instances(self) -> Sequence[CloudInstance]:
        listed = await self._machines.listing()
        self._expect_notices(listed)
        await self._power.settle(listed)
        if self._swept_at is None or self._clock.now() >= self._swept_at + _SWEEP_EVERY:
            self._swept_at = self._clock.now()
            await self._power.sweep(listed, self._clock.now())
        if self._clock.now() >= self._cleaned_at + _CLEAN_EVERY:
            self._cleaned_at = self._clock.now()
            await self._templates.clean()
        return listed

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        found = await self._machines.describe(ids)
        self._expect_notices(found)
        return found

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        await self._power.terminate(ids)

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        await self._power.stop(ids)

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        return await self._power.start(ids)

    async def identify(self, evidence: Evidence) -> Identity:
        """The document proves a machine of the account; of those, ours are known, or asked for."""
        identity = self._identity.identify(evidence)
        started_at = identity.started_at or self._clock.now()
        await self._machines.confirm(identity.provider_id, identity.zone, started_at=started_at)
        return identity

    async def notices(self) -> Sequence[Notice]:
        return await self._notices.notices()

    async def ack(self, notices: Sequence[Notice]) -> None:
        await self._notices.ack(notices)

    def status(self) -> ProviderStatus:
        anchors = tuple(f"{one.key}: {one.message}; {one.remedy}" for one in self._identity.problems())
        return ProviderStatus(
            budgets=self._clients.budgets(),
            dropped=self._notices.dropped,
            troubles=(*self._notices.troubles(), *anchors),
        )

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        return await self._check.findings(images)

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        await self._power.interrupt(ids, self._fis.interrupt, is_announced=is_announced)

    async def aclose(self) -> None:
        """Machines live on."""
        await self._notices.aclose()

    def _expect_notices(self, machines: Sequence[CloudInstance]) -> None:
        """The queue must hear of each end; where it never does, it is not wired."""
        now: datetime = self._clock.now()
        for machine in machines:
            has_ended = machine.state in (MachineState.TERMINATING, MachineState.TERMINATED)
            if (has_ended or machine.is_reclaimed) and machine.provider_id not in self._gone:
                self._gone.add(machine.provider_id)
                self._notices.ended(machine.provider_id, now, region=machine.capacity_pool.region)
        if len(self._gone) > 4 * max(1000, len(machines)):
            self._gone &= {machine.provider_id for machine in machines}
