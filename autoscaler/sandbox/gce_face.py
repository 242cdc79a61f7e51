"""The sandbox's Compute Engine over HTTP: what google-cloud-compute sees of a world, and no more than we call.

    request -> throttled? -> who calls? -> rate quota -> permission -> handler -> answer, or its loss

Serves /compute/v1/ of one project. One event loop changes everything, so nothing is locked. A background task ends
machines whose run time is over and notices what the world has done to them. Not for the Internet: plain HTTP.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate

from aiohttp import web
from aiohttp.typedefs import Middleware

from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import Event, Happening
from autoscaler.sandbox.gce_access import GceAccess
from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_catalogue import GceCatalogue
from autoscaler.sandbox.gce_ground import STARTUP_SCRIPT, Ground
from autoscaler.sandbox.gce_instances import Instances
from autoscaler.sandbox.gce_launch import Launcher
from autoscaler.sandbox.gce_limits import GceLimits, GceMeter
from autoscaler.sandbox.gce_metadata_face import GceFacts
from autoscaler.sandbox.gce_method import Ask, Method
from autoscaler.sandbox.gce_operations import Operations
from autoscaler.sandbox.gce_power import Power
from autoscaler.sandbox.gce_queries import Queries
from autoscaler.sandbox.gce_records import Record, Records
from autoscaler.sandbox.gce_wire import PREFIX, GceError, rate_exceeded, region_of, too_many_requests

WAIT_S = 120.0
_TICK_S = 0.25
_LOOK_AGAIN_S = 0.05
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GceFace:
    """Serves one project over an account. `access`, `behaviour`, `limits` and the catalogue may be changed while it
    runs; `calls` has every permission that was needed, with the method and the resource."""

    def __init__(
        self,
        driver: CloudDriver,
        catalogue: GceCatalogue,
        *,
        behaviour: GceBehaviour | None = None,
        limits: GceLimits | None = None,
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        self.catalogue = catalogue
        self.behaviour = behaviour or GceBehaviour()
        self.access = GceAccess()
        self.calls = self.access.calls
        self.limits = limits or GceLimits()
        self._driver = driver
        self._faults = driver.account.faults
        self._middlewares = middlewares
        self._meter = GceMeter(self.limits, self._now)
        self._ground = Ground(driver)
        dice = self._faults.dice("gce")
        self.operations = Operations(self._now)
        self.records = Records(catalogue, self._ground, self._now, ended=self._ended)
        launcher = Launcher(
            *(catalogue, self.records, self._ground, self.operations),
            behaviour=self.behaviour,
            clock=self._now,
            dice=dice,
        )
        self._power = Power(
            *(catalogue, self._ground, self.operations, launcher, self.records),
            behaviour=self.behaviour,
            clock=self._now,
            dice=dice,
        )
        self._instances = Instances(
            self.records, launcher, self._power, self.operations, meter=self._meter, clock=self._now
        )
        self._queries = Queries(
            *(catalogue, self._ground, self.records, self.operations), behaviour=self.behaviour, clock=self._now
        )
        driver.listen(self._heard)
        self._runner: web.AppRunner | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens and gives the base URL, without a slash at the end."""
        application = web.Application(middlewares=[*self._middlewares, self._errors], client_max_size=25 * 1024**2)
        for method in (*self._instances.methods(), *self._queries.methods()):
            route = PREFIX + "projects/{project}" + (f"/{method.path}" if method.path else "")
            application.router.add_route(method.http, route, self._handler(method))
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self._pump = asyncio.create_task(self._let_time_pass())
        return f"http://{host}:{self._runner.addresses[0][1]}"

    async def aclose(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    def facts(self, number: str) -> GceFacts:
        """What the metadata server of a machine tells. Raises KeyError once the world has forgotten it."""
        machine, record = self._driver.account.machines[number], self.records.of_number(number)
        return GceFacts(
            number=number,
            name=machine.wish.name,
            zone=machine.capacity_pool.zone,
            project=self.catalogue.project,
            project_number=int(self.catalogue.number),
            machine_type=machine.capacity_pool.machine_type,
            created_at=machine.launched_at,
            attributes={**machine.wish.tags, STARTUP_SCRIPT: machine.wish.user_data},
            # None: it was deleted before it booted.
            service_account="" if record is None else record.body.service_account,
        )

    def _now(self) -> float:
        """What time Google thinks it is."""
        return self._driver.now + self._faults.clock_skew_s

    def _heard(self, event: Event) -> None:
        if event.kind is Happening.STATE:
            self.records.machine_changed(event.machine.id)

    def _ended(self, record: Record) -> None:
        self._power.ended(record)

    async def _let_time_pass(self) -> None:
        while True:
            self._power.end_overdue()
            self._ground.settle()
            await asyncio.sleep(_TICK_S)

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except GceError as error:
            response = _json(error.status, json.dumps(error.body()).encode())
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            missing = GceError(error.status, "notFound", f"{request.method} {request.path} is not served here")
            response = _json(error.status, json.dumps(missing.body()).encode())
        response.headers["Date"] = formatdate(self._now(), usegmt=True)
        return response

    def _handler(self, method: Method) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            ask = await self._admitted(method, request)
            if method.waits:
                await self._wait(ask)
            self._ground.settle()
            answer = method.serve(ask)
            self._ground.settle()
            if (
                method.is_write
                and self._faults.strikes(self._faults.lost_answer, "gce-lost")
                and request.transport is not None
            ):
                # It took effect; the caller sees the connection break.
                request.transport.abort()
            return _json(200, answer)

        return handle

    async def _admitted(self, method: Method, request: web.Request) -> Ask:
        """Raises GceError."""
        body = await request.read()
        if self._faults.strikes(self._faults.internal_error, "gce-internal"):
            raise GceError(503, "backendError", "Internal error. Please try again or contact Google Support.")
        if self._faults.strikes(self._faults.throttle, "gce-throttle"):
            # Two doors: the API's own count, and the one before it.
            errors = (rate_exceeded("compute.googleapis.com/default"), too_many_requests())
            raise self._faults.dice("gce-doors").choice(errors)
        caller = self.access.caller(request.headers.get("Authorization", ""))
        place = request.match_info.get("region") or region_of(request.match_info.get("zone", ""))
        self._meter.charge(method.group, place)
        ask = Ask(
            method=method,
            caller=caller,
            access=self.access,
            parts=dict(request.match_info),
            query=dict(request.query),
            body=body,
            origin=str(request.url.origin()),
        )
        self._queries.check_project(ask)
        if method.permission:
            ask.need(method.permission, ask.resource)
        return ask

    async def _wait(self, ask: Ask) -> None:
        for _ in range(int(WAIT_S / _LOOK_AGAIN_S)):
            if self._queries.operation_of(ask).is_done:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", charset="utf-8")
