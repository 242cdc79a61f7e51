"""The sandbox's AWS: one HTTP port for EC2, SQS, STS, IAM, Pricing, FIS, SSM and Service Quotas, as boto3 calls them.

    request --> signature --> troubles --> the service (by the signature's scope) --> answer in its protocol
                                                  |
                        world of machines, queues, templates, prices

Owns the transport and the order of refusals. Region and service are those that the caller signed for. Any answer may
be lost after it took effect: the connection is dropped then.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate

from aiohttp import web
from aiohttp.typedefs import Middleware

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_json import Json, json_answer, json_failure, parse_document
from autoscaler.sandbox.aws_query import (
    IAM_NAMESPACE,
    STS_NAMESPACE,
    AwsError,
    Parameters,
    ec2_answer,
    ec2_failure,
    query_answer,
    query_failure,
)
from autoscaler.sandbox.aws_signature import SignedRequest, parse_authorization
from autoscaler.sandbox.aws_site import AwsSite

_JSON_VERSIONS: Mapping[str, str] = {"sqs": "1.0", "pricing": "1.1", "ssm": "1.1", "servicequotas": "1.1", "fis": "1.1"}
_READS = ("Describe", "Get", "List", "Receive")
_BODY_LIMIT = 1024**2


@dataclass(slots=True, kw_only=True)
class AwsTroubles:
    """Scripted troubles, beside the shares of `CloudFaults`. Mutable.

    `next_errors`: per action ("CreateFleet"), errors that its next calls answer before they take effect;
    `next_lost`: per action, how many of its next calls take effect and then lose their connection;
    `next_hung`: those that take effect and are never answered, until the caller has had enough.
    """

    next_errors: dict[str, list[AwsError]] = field(default_factory=dict)
    next_lost: dict[str, int] = field(default_factory=dict)
    next_hung: dict[str, int] = field(default_factory=dict)

    def fail_next(self, action: str, error: AwsError, *, times: int = 1) -> None:
        self.next_errors.setdefault(action, []).extend([error] * times)


class AwsFace:
    """An account on the network. `start` gives the URL for `endpoint_url`."""

    def __init__(self, site: AwsSite, *, middlewares: Sequence[Middleware] = ()) -> None:
        self.site = site
        self.troubles = AwsTroubles()
        self._middlewares = middlewares
        self._runner: web.AppRunner | None = None

    def app(self) -> web.Application:
        application = web.Application(middlewares=self._middlewares, client_max_size=_BODY_LIMIT)
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens and gives the base URL, without a slash at the end."""
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        url = f"http://{host}:{self._runner.addresses[0][1]}"
        self.site.sqs.origin = url
        return url

    async def aclose(self) -> None:
        self.site.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        signed = SignedRequest(
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        request_id = str(uuid.uuid4())
        try:
            service = parse_authorization(signed.headers.get("authorization", "")).service
        except AwsError as error:
            return _xml(ec2_failure(error, request_id=request_id), error.status)
        exchange = _Exchange(self, signed, service=service, request_id=request_id)
        response = await exchange.response()
        response.headers["Date"] = formatdate(self.site.access.aws_now, usegmt=True)
        if response.status == 200 and self._is_lost(exchange.action):
            assert request.transport is not None
            request.transport.abort()
        if response.status == 200 and _one_less(self.troubles.next_hung, exchange.action):
            await asyncio.Event().wait()
        return response

    def trouble(self, caller: Caller, action: str) -> None:
        """Raises AwsError for a call that fails before it takes effect."""
        faults = self.site.faults
        if waiting := self.troubles.next_errors.get(action):
            raise waiting.pop(0)
        if faults.strikes(faults.throttle, "throttle"):
            raise throttled(caller.service)
        if faults.strikes(faults.internal_error, "internal_error"):
            raise AwsError("InternalError", "An internal error has occurred", status=500)

    def _is_lost(self, action: str) -> bool:
        if _one_less(self.troubles.next_lost, action):
            return True
        faults = self.site.faults
        return not action.startswith(_READS) and faults.strikes(faults.lost_answer, "lost_answer")


def _one_less(counts: dict[str, int], action: str) -> bool:
    """Whether this call is one of those that were asked for."""
    if counts.get(action, 0) <= 0:
        return False
    counts[action] -= 1
    return True


def throttled(service: str) -> AwsError:
    """How each service says "too many"."""
    if service == "ec2":
        return AwsError("RequestLimitExceeded", "Request limit exceeded.", status=503)
    if service in ("sts", "iam"):
        return AwsError("Throttling", "Rate exceeded")
    return AwsError("ThrottlingException", "Rate exceeded", query_code="RequestThrottled")


class _Exchange:
    """One request and its answer, in the protocol of its service."""

    def __init__(self, face: AwsFace, signed: SignedRequest, *, service: str, request_id: str) -> None:
        self.action = ""
        self._face = face
        self._signed = signed
        self._service = service
        self._id = request_id

    async def response(self) -> web.Response:
        try:
            return await self._answer()
        except AwsError as error:
            return self._failure(error)

    async def _answer(self) -> web.Response:
        caller = self._face.site.access.caller(self._signed)
        if self._service in ("ec2", "sts", "iam"):
            return self._query(caller)
        if self._service in _JSON_VERSIONS:
            document = await self._json(caller)
            return json_answer(document, version=_JSON_VERSIONS[self._service], request_id=self._id)
        raise AwsError("UnknownOperationException", f"The sandbox's AWS has no service {self._service}", status=404)

    def _query(self, caller: Caller) -> web.Response:
        parameters, site = Parameters.parse(self._signed.body), self._face.site
        self.action = parameters.action
        self._face.trouble(caller, self.action)
        site.settle()
        match self._service:
            case "ec2":
                answer = site.ec2.answer(caller, parameters)
                site.settle()
                return _xml(ec2_answer(self.action, answer, request_id=self._id))
            case "sts":
                answer, namespace = site.sts.answer(caller, parameters), STS_NAMESPACE
            case _:
                answer, namespace = site.iam.answer(caller, parameters), IAM_NAMESPACE
        return _xml(query_answer(self.action, answer, namespace=namespace, request_id=self._id))

    async def _json(self, caller: Caller) -> Json:
        site, document = self._face.site, parse_document(self._signed.body)
        if self._service == "fis":
            self.action = f"{self._signed.method} {self._signed.path.split('/')[1]}"
            self._face.trouble(caller, self.action)
            answer = site.fis.answer(caller, self._signed.method, self._signed.path, document)
            site.settle()
            return answer
        self.action = self._signed.headers.get("x-amz-target", "").rpartition(".")[2]
        self._face.trouble(caller, self.action)
        match self._service:
            case "sqs":
                return await site.sqs.answer(caller, self.action, document)
            case "pricing":
                return site.pricing.answer(caller, self.action, document)
            case "ssm":
                return site.ssm.answer(caller, self.action, document)
            case _:
                return site.quotas.answer(caller, self.action, document)

    def _failure(self, error: AwsError) -> web.Response:
        match self._service:
            case "ec2":
                return _xml(ec2_failure(error, request_id=self._id), error.status)
            case "sts":
                return _xml(query_failure(error, namespace=STS_NAMESPACE, request_id=self._id), error.status)
            case "iam":
                return _xml(query_failure(error, namespace=IAM_NAMESPACE, request_id=self._id), error.status)
            case "sqs":
                return json_failure(error, version="1.0", request_id=self._id, namespace="com.amazonaws.sqs")
            case _:
                return json_failure(error, version="1.1", request_id=self._id)


def _xml(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/xml", charset="utf-8")
