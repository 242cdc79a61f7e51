"""Compute Engine's metadata server for one machine of the sandbox.

Every request carries `Metadata-Flavor: Google` and comes from no proxy; every answer carries it too. A value is read
below /computeMetadata/v1/instance/ or project/; with `wait_for_change=true` the answer comes when it is another one
than `last_etag` says, or after `timeout_sec` with the old one; `last_etag=0` is no value's. Facts from Google's
documentation of VM metadata.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_identity import GoogleNotary
from autoscaler.sandbox.cloud_machines import Machine

_FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
_ROOT = "/computeMetadata/v1/"
_LOOK_S = 0.1
_LONGEST_WAIT_S = 300.0
_HANG_S = 30.0
_TOKEN_LIFE_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class GceFacts:
    """What Compute Engine knows of a machine beside the world. `service_account` "" is none; times in epoch seconds."""

    number: str
    name: str
    zone: str
    project: str
    project_number: int
    machine_type: str
    created_at: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""


class GceMetadataFace:
    """See the module docstring. `facts` is asked at each request: attributes may change."""

    def __init__(
        self,
        machine: Machine,
        facts: Callable[[], GceFacts],
        notary: GoogleNotary,
        *,
        faults: CloudFaults | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._machine = machine
        self._facts = facts
        self._notary = notary
        self._faults = faults or CloudFaults()
        self._clock = clock

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        return app

    async def _get(self, request: web.Request) -> web.Response:
        if request.path == "/":
            return web.Response(text="computeMetadata/\n", headers=_FLAVOR)
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return web.Response(status=403, text="Missing required header: Metadata-Flavor: Google", headers=_FLAVOR)
        if self._faults.strikes(self._faults.hanging, "metadata/hanging"):
            await asyncio.sleep(_HANG_S)
        if self._faults.strikes(self._faults.unauthorized, "metadata/unauthorized"):
            return web.Response(status=503, text="Service Unavailable", headers=_FLAVOR)
        if not request.path.startswith(_ROOT):
            return web.Response(status=404, headers=_FLAVOR)
        path = request.path.removeprefix(_ROOT).rstrip("/")
        if path == "instance/service-accounts/default/identity":
            return self._identity(request)
        value = self._read(path)
        if value is not None and request.query.get("wait_for_change", "").lower() == "true":
            wait_s = _seconds(request.query.get("timeout_sec", ""))
            if wait_s is None:
                return web.Response(status=400, text="timeout_sec is not a number", headers=_FLAVOR)
            value = await self._changed(path, value, known=request.query.get("last_etag", ""), wait_s=wait_s)
        if value is None:
            return web.Response(status=404, headers=_FLAVOR)
        return web.Response(text=value, headers={**_FLAVOR, "ETag": _etag(value)})

    async def _changed(self, path: str, value: str, *, known: str, wait_s: float) -> str | None:
        """Wait until the value is not the one that the caller knows; without a tag, the one of now."""
        known = known or _etag(value)
        deadline = asyncio.get_running_loop().time() + wait_s
        current: str | None = value
        while current is not None and _etag(current) == known and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_S)
            current = self._read(path)
        return current

    def _read(self, path: str) -> str | None:
        """The value now; of a folder, what is in it, one name a line."""
        values = self._values()
        if path in values:
            return values[path]
        folder = f"{path}/" if path else ""
        below = [name[len(folder) :] for name in values if name.startswith(folder)]
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below}
        return "".join(f"{name}\n" for name in sorted(names)) or None

    def _values(self) -> dict[str, str]:
        facts, machine = self._facts(), self._machine
        number, taken = facts.project_number, machine.noticed_at is not None
        account = {"email": facts.service_account} if facts.service_account else {}
        instance = {
            "id": facts.number,
            "name": facts.name,
            "hostname": f"{facts.name}.c.{facts.project}.internal",
            "zone": f"projects/{number}/zones/{facts.zone}",
            "machine-type": f"projects/{number}/machineTypes/{facts.machine_type}",
            "preempted": "TRUE" if taken else "FALSE",
            "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE" if taken else "NONE",
            "network-interfaces/0/ip": machine.address,
            **{f"attributes/{key}": value for key, value in facts.attributes.items()},
            **{f"service-accounts/default/{key}": value for key, value in account.items()},
        }
        return {
            **{f"instance/{key}": value for key, value in instance.items()},
            "project/project-id": facts.project,
            "project/numeric-project-id": str(number),
        }

    def _identity(self, request: web.Request) -> web.Response:
        facts, audience = self._facts(), request.query.get("audience", "")
        if not facts.service_account:
            return web.Response(status=404, headers=_FLAVOR)
        if not audience:
            return web.Response(status=400, text="non-empty audience parameter required", headers=_FLAVOR)
        now = int(self._clock() + self._faults.clock_skew_s)
        number = str(int.from_bytes(hashlib.sha256(facts.service_account.encode()).digest()[:8], "big"))
        claims: dict[str, object] = {
            "aud": audience,
            "azp": number,
            "sub": number,
            "email": facts.service_account,
            "email_verified": True,
            "iss": "https://accounts.google.com",
            "iat": now,
            "exp": now + _TOKEN_LIFE_S,
        }
        if request.query.get("format") == "full":
            claims["google"] = {
                "compute_engine": {
                    "instance_id": facts.number,
                    "instance_name": facts.name,
                    "instance_creation_timestamp": int(facts.created_at),
                    "project_id": facts.project,
                    "project_number": facts.project_number,
                    "zone": facts.zone,
                }
            }
        return web.Response(text=self._notary.sign(claims), headers=_FLAVOR)


def _seconds(text: str) -> float | None:
    """How long to wait; None where that is no number."""
    if not text:
        return _LONGEST_WAIT_S
    return min(_LONGEST_WAIT_S, float(text)) if text.isascii() and text.isdigit() else None


def _etag(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]
