"""Look for every fault of the configuration that Google can tell. Reads only; raises nothing.

Google offers no rehearsal of a launch, so that each part of one is looked at: region and quotas, zones and machine
types, subnetwork, image, permissions as `testIamPermissions` tells them, keys for identity tokens, and the clock.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial

from google.cloud import compute_v1

from autoscaler.spi import Finding, InvalidRequest, ProviderError, Unauthorized, Verdict
from providers.gce_catalog import Catalogue, GceCatalog
from providers.gce_clients import CALL_S, GceClients, Sdk
from providers.gce_errors import Context, NotFound
from providers.gce_identity import TrustAnchors
from providers.gce_request import image_path
from providers.gce_settings import GceSettings, region_of

INSTANCE_PERMISSIONS = (
    *("compute.instances.create", "compute.instances.delete", "compute.instances.get", "compute.instances.setLabels"),
    *("compute.instances.setMetadata", "compute.instances.setServiceAccount", "compute.instances.setTags"),
    *("compute.instances.start", "compute.instances.stop"),
)
"""What launching and ending a machine takes of the resource itself; `deploy/gcp` grants these."""
_ROLES = "roles/compute.instanceAdmin.v1, and roles/iam.serviceAccountUser on the machines' service account"
_SKEW = timedelta(minutes=1)
_QUOTAS = ("CPUS", "INSTANCES", "IN_USE_ADDRESSES")
_NO_OPERATION = "operation-autoscaler-check"
_GONE = frozenset({"OBSOLETE", "DELETED"})


class GceCheck:
    def __init__(self, settings: GceSettings, clients: GceClients, catalog: GceCatalog, anchors: TrustAnchors) -> None:
        self._settings = settings
        self._clients = clients
        self._catalog = catalog
        self._anchors = anchors

    async def findings(self, images: Mapping[str, Mapping[str, str]]) -> list[Finding]:
        """Stops early where nobody can sign in: all else would say the same."""
        signed_in = await self._guarded("credentials", self._sign_in)
        if any(one.verdict is not Verdict.OK and one.key in ("credentials", "project") for one in signed_in):
            return signed_in
        found = list(signed_in)
        for region in self._settings.regions:
            found += await self._guarded("regions", partial(self._region, region))
            found += await self._guarded(f"networks.{region}", partial(self._subnetwork, region))
        found += await self._guarded("zones", self._types)
        for name, references in images.items():
            found += await self._guarded(f"image {name}", partial(self._image, name, references))
        found += await self._guarded("credentials", self._permissions)
        for permission, path in self._followed():
            found += await self._guarded("credentials", partial(self._may_follow, permission, path))
        found += await self._guarded("trust_anchors", self._keys)
        return found

    async def _guarded(self, key: str, look: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
        try:
            return await look()
        except Unauthorized as error:
            return [_refused(key, str(error), f"Grant {_ROLES}, or give the provider other credentials")]
        except ProviderError as error:
            return [_warning(key, f"could not be looked at: {error}", "Try again; see what Google answered")]
        except Exception as error:
            return [_warning(key, f"could not be looked at: {type(error).__name__}", "Try again, and report this")]

    async def _sign_in(self) -> list[Finding]:
        project = self._settings.project

        def read(sdk: Sdk) -> None:
            sdk.get("zones", maxResults="1")

        try:
            await self._clients.read(read, Context(doing="read the project", permission="compute.zones.list"))
        except NotFound as error:
            return [_refused("project", str(error), f'Correct the project id "{project}"')]
        found = [Finding(verdict=Verdict.OK, key="credentials", message=f"signed in; project {project}")]
        if trouble := clock_trouble(self._clients):
            found.append(_refused("(clock)", trouble, "Set the clock by NTP"))
        return found

    async def _region(self, region: str) -> list[Finding]:
        def read(sdk: Sdk) -> compute_v1.Region:
            return sdk.regions.get(project=sdk.project, region=region, retry=None, timeout=CALL_S)

        try:
            answer = await self._clients.read(
                read, Context(doing=f"read region {region}", permission="compute.regions.get")
            )
        except NotFound:
            return [_refused("regions", f'there is no region "{region}"', "Correct its name")]
        wanted = _QUOTAS if self._settings.networks[region].has_external_ip else _QUOTAS[:2]
        return [
            _refused(
                "regions",
                f"the quota {quota.metric} in {region} is zero",
                f"Ask for quota in {region} on the quota page of the project, or leave the region out",
            )
            for quota in answer.quotas
            if quota.metric in wanted and quota.limit == 0
        ]

    async def _subnetwork(self, region: str) -> list[Finding]:
        network = self._settings.networks[region]
        key = f"networks.{region}.subnetwork"
        _, project, _, where, _, name = network.subnetwork.split("/")

        def read(sdk: Sdk) -> compute_v1.Subnetwork:
            return sdk.subnetworks.get(project=project, region=where, subnetwork=name, retry=None, timeout=CALL_S)

        def ask(sdk: Sdk) -> Sequence[str]:
            wanted = ["compute.subnetworks.use"]
            if network.has_external_ip:
                wanted.append("compute.subnetworks.useExternalIp")
            asked = compute_v1.TestPermissionsRequest(permissions=wanted)
            answer = sdk.subnetworks.test_iam_permissions(
                project=project,
                region=where,
                resource=name,
                test_permissions_request_resource=asked,
                retry=None,
                timeout=CALL_S,
            )
            return [one for one in wanted if one not in answer.permissions]

        context = Context(doing=f"read subnetwork {name}", permission="compute.subnetworks.get")
        if where != region:
            return [_refused(key, f"{network.subnetwork} is not in {region}", f"Name a subnetwork of {region}")]
        try:
            await self._clients.read(read, context)
        except NotFound:
            return [_refused(key, f"there is no subnetwork {network.subnetwork}", "Make it, or correct its name")]
        missing = await self._clients.read(ask, context)
        return [
            _refused(key, f"the credentials lack {one} on {name}", "Grant roles/compute.networkUser on it")
            for one in missing
        ]

    async def _types(self) -> list[Finding]:
        catalogue = await self._catalog.load()
        found = [
            _refused(f"zones[{index}]", f"there is no zone {zone} that is up", "Correct its name, or leave it out")
            for index, zone in enumerate(self._settings.zones)
            if zone not in catalogue.zones
        ]
        found += [
            _warning(f"prices.{'/'.join(filter(None, key))}", f"{key[1]} is in no zone that is used", "Leave it out")
            for key in self._settings.prices
            if not _is_somewhere(key, catalogue)
        ]
        if not catalogue.types:
            found.append(_refused("prices", "no machine type can be launched", "Price types that the zones have"))
        return found

    async def _image(self, name: str, references: Mapping[str, str]) -> list[Finding]:
        key = f"image {name}"
        try:
            path = image_path(references)
        except InvalidRequest as error:
            return [_refused(key, str(error), "Correct the image's references for this provider")]
        _, project, _, _, *rest = path.split("/")
        permission = "compute.images.getFromFamily" if rest[0] == "family" else "compute.images.get"

        def read(sdk: Sdk) -> compute_v1.Image:
            if rest[0] == "family":
                return sdk.images.get_from_family(project=project, family=rest[1], retry=None, timeout=CALL_S)
            return sdk.images.get(project=project, image=rest[0], retry=None, timeout=CALL_S)

        try:
            image = await self._clients.read(read, Context(doing=f"read {path}", permission=permission))
        except NotFound:
            return [_refused(key, f"there is no image {path}", "Bake it, or correct the reference")]
        if image.deprecated.state in _GONE:
            return [_refused(key, f"{path} is {image.deprecated.state}", "Name a newer image, or its family")]
        if image.status and image.status != "READY":
            return [_refused(key, f"{path} is {image.status}", "Wait until it is READY, or name another one")]
        return await self._may_boot(key, project, image.name)

    async def _may_boot(self, key: str, project: str, image: str) -> list[Finding]:
        """Reading an image takes another permission than making disks of it, which only a launch would show."""
        wanted = "compute.images.useReadOnly"

        def ask(sdk: Sdk) -> bool:
            asked = compute_v1.TestPermissionsRequest(permissions=[wanted])
            answer = sdk.images.test_iam_permissions(
                project=project, resource=image, test_permissions_request_resource=asked, retry=None, timeout=CALL_S
            )
            return wanted in answer.permissions

        if await self._clients.read(ask, Context(doing="ask for permissions", permission="compute.images.get")):
            return []
        remedy = f"Grant roles/compute.imageUser in the project {project}"
        return [_refused(key, f"the credentials lack {wanted} on {image}", remedy)]

    async def _permissions(self) -> list[Finding]:
        zones = sorted((await self._catalog.load()).zones)
        if not zones:
            return []

        def ask(sdk: Sdk) -> Sequence[str]:
            # Of a machine that need not exist: the project's policy decides.
            answer = sdk.instances.test_iam_permissions(
                project=sdk.project,
                zone=zones[0],
                resource="autoscaler-check",
                test_permissions_request_resource=compute_v1.TestPermissionsRequest(
                    permissions=list(INSTANCE_PERMISSIONS)
                ),
                retry=None,
                timeout=CALL_S,
            )
            return list(answer.permissions)

        context = Context(doing="ask for permissions", permission="compute.instances.list")
        try:
            granted = await self._clients.read(ask, context)
        except NotFound:
            granted = []
        missing = [one for one in INSTANCE_PERMISSIONS if one not in granted]
        if not granted:
            return [_warning("credentials", "Google does not say which permissions they have", f"See that {_ROLES}")]
        if missing:
            return [_refused("credentials", f"they lack {', '.join(missing)}", f"Grant {_ROLES}")]
        return []

    def _followed(self) -> list[tuple[str, str]]:
        """What launches, starts and ends of machines are followed by: permissions, and paths that need them."""
        found = [
            ("compute.regionOperations.get", f"regions/{self._settings.regions[0]}/operations/{_NO_OPERATION}"),
            ("compute.globalOperations.list", "aggregated/operations"),
            ("compute.instances.list", "aggregated/instances"),
        ]
        if zone := self._catalog.some_zone:
            found.append(("compute.zoneOperations.get", f"zones/{zone}/operations/{_NO_OPERATION}"))
        return found

    async def _may_follow(self, permission: str, path: str) -> list[Finding]:
        """Of an operation that does not exist Google says so to those alone who may read it."""

        def read(sdk: Sdk) -> None:
            sdk.get(path, **({} if path.endswith(_NO_OPERATION) else {"maxResults": "1"}))

        with suppress(NotFound):
            await self._clients.read(read, Context(doing=f"read {path}", permission=permission))
        return []

    async def _keys(self) -> list[Finding]:
        keys = await self._anchors.keys("")
        if keys and not self._anchors.problem:
            return []
        return [
            _refused(
                "trust_anchors",
                self._anchors.problem or "there is no key",
                "Let the daemon reach the URL, or name a file that exists: no machine can prove itself",
            )
        ]


def clock_trouble(clients: GceClients) -> str:
    """Empty where our clock is near enough to Google's."""
    error = clients.clock_error
    if abs(error) <= _SKEW:
        return ""
    off_s = abs(error.total_seconds())
    return f"this host's clock is {off_s:.0f} s off Google's: machines are refused as too old or too young"


def _is_somewhere(key: tuple[str, str], catalogue: Catalogue) -> bool:
    region, machine_type = key
    return any(one.name == machine_type and region in ("", region_of(one.zone)) for one in catalogue.types)


def _refused(key: str, message: str, remedy: str) -> Finding:
    return Finding(verdict=Verdict.REFUSED, key=key, message=message, remedy=remedy)


def _warning(key: str, message: str, remedy: str) -> Finding:
    return Finding(verdict=Verdict.WARNING, key=key, message=message, remedy=remedy)
