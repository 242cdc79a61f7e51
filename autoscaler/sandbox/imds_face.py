"""EC2's instance metadata service (IMDSv2) for one machine of the sandbox.

    PUT /latest/api/token, header X-aws-ec2-metadata-token-ttl-seconds: 1..21600   the token as text; else 400, and 403
                                                                                   for what a proxy passed on
    GET <path>, header X-aws-ec2-metadata-token                                    text; 401 without a valid one

What there is follows the machine as it is now: a notice appears, a rebalance recommendation appears, tags are its tags.
A path with something below it lists that, one name a line, those of folders with a slash.
Facts from the EC2 user guide, as in the adapter's own notes.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web

from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_identity import AwsNotary
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.sandbox.metadata_site import MetadataSite
from autoscaler.spi import CapacityType

_LONGEST_TTL_S = 21600
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
_HANG_S = 30.0


class Imds:
    """See the module docstring. `account` is the owner's id; `clock` gives epoch seconds."""

    def __init__(
        self,
        machine: Machine,
        notary: AwsNotary,
        *,
        account: str,
        faults: CloudFaults | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._machine = machine
        self._notary = notary
        self._account = account
        self._faults = faults or CloudFaults()
        self._clock = clock
        self._tokens: dict[str, float] = {}
        self._signed: tuple[float, str] | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_put("/latest/api/token", self._token)
        app.router.add_get("/{path:.*}", self._get)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        if "X-Forwarded-For" in request.headers:
            return web.Response(status=403, text="Forbidden")
        ttl = request.headers.get(_TTL, "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= _LONGEST_TTL_S):
            return web.Response(status=400, text="Bad Request")
        token = secrets.token_urlsafe(32)
        self._tokens[token] = self._clock() + int(ttl)
        return web.Response(text=token, headers={_TTL: ttl})

    async def _get(self, request: web.Request) -> web.Response:
        if self._faults.strikes(self._faults.hanging, "metadata/hanging"):
            await asyncio.sleep(_HANG_S)
        expires_at = self._tokens.get(request.headers.get(_TOKEN, ""), 0.0)
        if expires_at <= self._clock() or self._faults.strikes(self._faults.unauthorized, "metadata/unauthorized"):
            return web.Response(status=401, text="Unauthorized")
        found = self._read(request.match_info["path"].rstrip("/"))
        return web.Response(status=404, text="Not Found") if found is None else web.Response(text=found)

    def _read(self, path: str) -> str | None:
        top, _, rest = path.removeprefix("latest/").partition("/")
        if not path.startswith("latest/"):
            return None
        match top:
            case "meta-data":
                return self._meta_data(rest)
            case "user-data":
                return self._machine.wish.user_data or None
            case "dynamic":
                return self._identity(rest.removeprefix("instance-identity/"))
            case _:
                return None

    def _meta_data(self, path: str) -> str | None:
        facts = self._facts()
        if path in facts:
            return facts[path]
        folder = f"{path}/" if path else ""
        below = [name[len(folder) :] for name, text in facts.items() if text is not None and name.startswith(folder)]
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below}
        return "\n".join(sorted(names)) or None

    def _facts(self) -> dict[str, str | None]:
        """By path; None where there is nothing now."""
        machine, place = self._machine, self._machine.capacity_pool
        taken = machine.noticed_at is not None and machine.is_up
        rebalance = json.dumps({"noticeTime": _instant(machine.rebalanced_at)}) if machine.rebalanced_at else None
        return {
            "ami-id": machine.wish.image,
            "events/maintenance/scheduled": "[]",
            "events/recommendations/rebalance": rebalance,
            "hostname": f"ip-{machine.address.replace('.', '-')}.{place.region}.compute.internal",
            "instance-id": machine.id,
            "instance-life-cycle": "spot" if place.capacity_type is CapacityType.SPOT else "on-demand",
            "instance-type": place.machine_type,
            "local-ipv4": machine.address,
            "placement/availability-zone": place.zone,
            "placement/region": place.region,
            "spot/instance-action": self._action() if taken else None,
            "spot/termination-time": _instant(machine.reclaim_at) if taken and not self._stops else None,
            **{f"tags/instance/{key}": value for key, value in machine.tags.items()},
        }

    @property
    def _stops(self) -> bool:
        return self._machine.wish.stops_when_taken

    def _action(self) -> str:
        action = "stop" if self._stops else "terminate"
        return json.dumps({"action": action, "time": _instant(self._machine.reclaim_at)})

    def _identity(self, path: str) -> str | None:
        match path:
            case "document":
                return self._document()
            case "rsa2048":
                started = self._machine.started_at
                if self._signed is None or self._signed[0] != started:
                    signed = self._notary.sign(self._machine.capacity_pool.region, self._document())
                    self._signed = (started, signed)
                return self._signed[1]
            case _:
                return None

    def _document(self) -> str:
        """As EC2 writes it: once per start, keys in no particular order, null where there is nothing."""
        machine, place = self._machine, self._machine.capacity_pool
        document = {
            "accountId": self._account,
            "architecture": self._machine.arch,
            "availabilityZone": place.zone,
            "billingProducts": None,
            "devpayProductCodes": None,
            "marketplaceProductCodes": None,
            "imageId": machine.wish.image,
            "instanceId": machine.id,
            "instanceType": place.machine_type,
            "kernelId": None,
            "pendingTime": _instant(machine.started_at + self._faults.clock_skew_s),
            "privateIp": machine.address,
            "ramdiskId": None,
            "region": place.region,
            "version": "2017-09-30",
        }
        return json.dumps(document, indent=2, separators=(",", " : "))


class ImdsSites:
    """What `cloud_hosts` starts beside each machine of a cloud: its metadata service. `notary` signs documents."""

    def __init__(self, driver: CloudDriver, notary: AwsNotary) -> None:
        self._driver = driver
        self._notary = notary

    async def __call__(self, machine: Machine) -> tuple[MetadataSite, Mapping[str, str]]:
        account = self._driver.account
        server = Imds(
            machine, self._notary, account=account.account, faults=account.faults, clock=lambda: self._driver.now
        )
        site = await MetadataSite(server.app()).start()
        return site, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{site.authority}"}


def _instant(at: float | None) -> str:
    return datetime.fromtimestamp(at or 0.0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
