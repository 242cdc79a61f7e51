"""The `gce` provider: spot and on-demand machines of one Google Cloud project.

Owns the Provider contract; the parts are beside it:

    gce_settings    options                       gce_request      what a machine is, as a request body
    gce_clients     SDK, threads, credentials     gce_launch       batches, repeats, refusals
    gce_errors      what error codes mean         gce_machines     listings, and what a status means
    gce_names       names, labels, request ids    gce_power        ending, stopping, starting, reclaiming
    gce_catalog     zones, types, prices          gce_operations   polling, preemptions
    gce_identity    identity tokens               gce_notices, gce_check

Nothing is kept on disk: a restarted daemon finds its machines by label, and its launches under way by request id.
"""

from collections.abc import Mapping, Sequence

from autoscaler.spi import (
    CapacityType,
    CloudInstance,
    Evidence,
    Finding,
    Identity,
    LaunchBatch,
    LaunchResult,
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
from providers.gce_catalog import GceCatalog
from providers.gce_check import GceCheck, clock_trouble
from providers.gce_clients import GceClients
from providers.gce_identity import GceIdentity, TrustAnchors
from providers.gce_launch import GceLauncher
from providers.gce_machines import GceMachines
from providers.gce_names import name_prefix
from providers.gce_notices import GceNotices
from providers.gce_operations import Operations
from providers.gce_power import GcePower
from providers.gce_settings import GceSettings, parse

_TRAITS = ProviderTraits(
    stoppable=frozenset(CapacityType),
    minimum_billed_s=60.0,
    reclaimed_free_s=60.0,
    stopped_share=0.02,
)


def create(settings: ProviderSettings, surroundings: Surroundings) -> Provider:
    """Entry point. Opens no connection. Raises SettingsError."""
    return GceProvider(parse(settings), surroundings)


class GceProvider:
    """See `autoscaler.spi.Provider`."""

    def __init__(self, settings: GceSettings, surroundings: Surroundings) -> None:
        clock, deployment = surroundings.clock, surroundings.deployment
        self._name = settings.name
        self._clients = GceClients(settings, surroundings.gates, clock)
        operations = Operations(self._clients, clock)
        self._catalog = GceCatalog(settings, self._clients, clock)
        self._machines = GceMachines(settings, self._clients, operations, deployment=deployment, clock=clock)
        self._power = GcePower(self._clients, self._machines, operations, clock)
        self._launcher = GceLauncher(
            settings, self._clients, self._catalog, self._machines, operations, deployment=deployment, clock=clock
        )
        self._notices = GceNotices(
            self._clients, self._machines, operations, clock, name_prefix=name_prefix(deployment)
        )
        anchors = TrustAnchors(settings.trust_anchors, surroundings.gates, clock, name=settings.name)
        self._anchors = anchors
        self._identity = GceIdentity(settings, self._machines, anchors, public_url=surroundings.public_url, clock=clock)
        self._check = GceCheck(settings, self._clients, self._catalog, anchors)

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
        self._power.begin_cleaning()
        return listed

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        return await self._machines.describe(ids)

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        await self._power.terminate(ids)

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        await self._power.stop(ids)

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        return await self._power.start(ids)

    async def identify(self, evidence: Evidence) -> Identity:
        return await self._identity.identify(evidence)

    async def notices(self) -> Sequence[Notice]:
        return await self._notices.notices()

    async def ack(self, notices: Sequence[Notice]) -> None:
        await self._notices.ack(notices)

    def status(self) -> ProviderStatus:
        troubles = [*self._notices.troubles, *self._launcher.troubles]
        if self._anchors.problem:
            troubles.append(f"identity: {self._anchors.problem}; no machine can prove itself without")
        if trouble := clock_trouble(self._clients):
            troubles.append(f"clock: {trouble}; set it by NTP")
        return ProviderStatus(budgets=self._clients.budgets(), dropped=self._notices.dropped, troubles=tuple(troubles))

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        return await self._check.findings(images)

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        await self._power.interrupt(ids, is_announced=is_announced)

    async def aclose(self) -> None:
        """Machines live on."""
        await self._power.aclose()
