"""POST /webhooks/{forge}: authenticate, make durable, acknowledge, wake the loop. In that order, and nothing else.

    route -> size and type -> body -> signature -> parse -> store.accept -> 202 -> on_accepted
     404       413    415    408/413     401        400        503

A webhook is a hint; what it changes is decided by the tick. Nothing is acknowledged that the store has not written,
since GitHub never sends a delivery again by itself. This is the hot path: no middleware, no per-request objects that
are not needed, no log line for what a stranger can send at will (`autoscaler_webhooks_total` counts it).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog
from aiohttp import web
from prometheus_client import Counter

from autoscaler.http.limits import BODY_TIMEOUT_S, BodyBudget, BodyRefused, read_up_to
from autoscaler.metrics import Metrics
from autoscaler.spi import BadSignature, Clock, Forge, ForgeName, MalformedWebhook, Webhook
from autoscaler.store import Store, StoreError

MAX_BODY = 25 * 1024 * 1024
"""GitHub's own limit for a payload; GitLab's are smaller."""
LARGE_BODY = 1024 * 1024
LARGE_BODIES_AT_ONCE = 4
"""Bodies above 1 MiB are rare; more of them at once would use up the listener's budget for all others."""

OnAccepted = Callable[[int, ForgeName, Webhook], None]
_log = structlog.get_logger(__name__)


def make_webhook_routes(
    forges: Mapping[ForgeName, Forge],
    store: Store,
    metrics: Metrics,
    clock: Clock,
    on_accepted: OnAccepted,
    bodies: BodyBudget | None = None,
) -> Sequence[web.RouteDef]:
    """The routes for the public listener. `forges` is looked up per request, so that a reload may change it.

    `on_accepted(seq, forge, webhook)` is called on the loop once the webhook is durable; it must not block. `bodies` is
    the budget of the listener, for what is read before its signature is known.
    """
    intake = _Intake(forges, store, metrics, clock, on_accepted, bodies or BodyBudget())
    return [web.post("/webhooks/{forge}", intake.handle)]


class _Intake:
    def __init__(
        self,
        forges: Mapping[ForgeName, Forge],
        store: Store,
        metrics: Metrics,
        clock: Clock,
        on_accepted: OnAccepted,
        bodies: BodyBudget,
    ) -> None:
        self._forges = forges
        self._store = store
        self._counter = metrics.webhooks_total
        self._clock = clock
        self._on_accepted = on_accepted
        self._bodies = bodies
        self._children: dict[tuple[str, str], Counter] = {}
        self._large = asyncio.Semaphore(LARGE_BODIES_AT_ONCE)

    async def handle(self, request: web.Request) -> web.Response:
        forge = self._forges.get(ForgeName(request.match_info["forge"]))
        if forge is None:
            return self._answer("-", "unknown_forge", 404)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return self._answer(forge.name, "content_type", 415)
        try:
            body = await self._body(request)
            webhook = forge.parse_webhook(headers, body)
        except BodyRefused as refused:
            return self._answer(forge.name, refused.outcome, refused.status)
        except BadSignature as refused:
            return self._answer(forge.name, refused.reason, 401)
        except MalformedWebhook as refused:
            return self._answer(forge.name, refused.reason, 400)
        if webhook.outcome != "accepted":
            return self._answer(forge.name, webhook.outcome, 202)
        return await self._accept(forge.name, webhook)

    async def _accept(self, forge: ForgeName, webhook: Webhook) -> web.Response:
        try:
            seq = await self._store.accept(forge, webhook, self._clock.now())
        except StoreError:
            _log.exception("webhook_not_stored", forge=forge, delivery=webhook.delivery_id)
            return self._answer(forge, "not_stored", 503)
        if seq is None:
            return self._answer(forge, "duplicate", 202)
        self._on_accepted(seq, forge, webhook)
        return self._answer(forge, "accepted", 202)

    async def _body(self, request: web.Request) -> bytes:
        """The whole body, or BodyRefused before more than `MAX_BODY` of it is held."""
        announced = request.content_length
        if announced is not None and announced > MAX_BODY:
            raise BodyRefused(413, "too_large")
        if request.content.is_eof():
            return request.content.read_nowait()
        held = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                await read_up_to(request.content, LARGE_BODY, held, self._bodies)
                if len(held) <= LARGE_BODY:
                    return bytes(held)
                if self._large.locked():
                    raise BodyRefused(503, "too_many_large")
                async with self._large:
                    await read_up_to(request.content, MAX_BODY, held, self._bodies)
        except TimeoutError:
            raise BodyRefused(408, "body_timeout") from None
        except (OSError, web.PayloadAccessError, web.RequestPayloadError):
            raise BodyRefused(400, "body_broken") from None
        finally:
            self._bodies.give_back(len(held))
        if len(held) > MAX_BODY:
            raise BodyRefused(413, "too_large")
        return bytes(held)

    def _answer(self, forge: str, outcome: str, status: int) -> web.Response:
        child = self._children.get((forge, outcome))
        if child is None:
            child = self._children[forge, outcome] = self._counter.labels(forge=forge, outcome=outcome)
        child.inc()
        if status == 503:
            return web.Response(status=status, text=outcome, headers={"Retry-After": "5"})
        return web.Response(status=status) if status == 202 else web.Response(status=status, text=outcome)
