"""The boto3 clients of one provider: made once, called in bounded threads, their errors translated.

    reads       listings and lookups                 writes      launches, ends, stops, starts, templates
    long-reads  types and prices, many pages each: a service that hangs must not keep machines from being looked at

The SDK's own retries are off: the core is the one that repeats. One endpoint URL, where set, serves every service.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import NoCredentialsError
from botocore.loaders import JSONFileLoader

from autoscaler.spi import Clock, Gates, OutcomeUnknown, ProviderError, RateBudget, Throttled
from providers import aws_describe
from providers.aws_errors import Context, TokenBurnt, translate
from providers.aws_settings import AwsSettings
from providers.rate_budgets import Family, RateBudgets

T = TypeVar("T")

PAGE = 1000
PRICING_REGION = "us-east-1"
"""The Pricing API is there and in two more regions only."""
_CONNECT_S = 2.0
_READ_S = 25.0
_GATE_S = 30.0
# EC2's documented buckets per account and region: describes with a filter 100 refilled 20 a second, changes 50 and 5;
# launched machines 1,000 and 2 a second. Fleets have a bucket of their own.
_FAMILIES = {
    "launches": Family(limit=50, refill_per_s=5),
    "machines": Family(limit=1000, refill_per_s=2),
    "ends": Family(limit=50, refill_per_s=5),
    "changes": Family(limit=50, refill_per_s=5),
    "describes": Family(limit=100, refill_per_s=20, reserve=20),
}
_READ_THREADS = 4
_LONG_READ_THREADS = 2
_WRITE_THREADS = 8


class Sdk:
    """Clients by service and region, each made at its first use: in threads of the gates only, since making one reads
    files and may ask the metadata service for credentials."""

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._session: Any = None
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str, region: str) -> Any:
        with self._lock:
            found = self._clients.get((service, region))
            if found is None:
                found = self._clients[service, region] = self._make(service, region)
            return found

    def _make(self, service: str, region: str) -> Any:
        if self._session is None:
            self._session = _session(self._settings)
        client = self._session.client(
            service, region_name=region, endpoint_url=self._settings.endpoint_url or None, config=_config()
        )
        if service == "ec2":
            aws_describe.prepare(client)
        return client


class _Models:
    """The SDK's descriptions of services, as its sessions ask for them: each is read once in a process and not once for
    each session. EC2's alone takes a quarter of a second and 30 MB. Nothing writes to them."""

    def __init__(self) -> None:
        files = JSONFileLoader()
        self.exists = files.exists
        self.load_file = functools.cache(files.load_file)


_MODELS = _Models()


def _core(profile: str | None) -> Any:
    core = botocore.session.Session(profile=profile)
    core.get_component("data_loader").file_loader = _MODELS
    return core


def _session(settings: AwsSettings) -> Any:
    """boto3's own chain, or the role that it may take."""
    profile = settings.profile or None
    core = _core(profile)
    if not settings.role_arn:
        return boto3.Session(botocore_session=core)
    source = _core(profile)
    resolver = CredentialResolver(providers=[_TakenRole(settings, source)])
    core.register_component("credential_provider", resolver)  # botocore's own way to credentials that renew themselves
    return boto3.Session(botocore_session=core)


class _TakenRole:
    """A credential provider, as botocore asks for them: a role, taken with what boto3's chain finds, and renewed."""

    METHOD = "assume-role"

    def __init__(self, settings: AwsSettings, source: Any) -> None:
        self._settings = settings
        self._source = source

    def load(self) -> DeferredRefreshableCredentials:
        credentials = self._source.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        settings = self._settings
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(
                self._source.create_client,
                region_name=settings.regions[0],
                endpoint_url=settings.endpoint_url or None,
                config=_config(),
            ),
            source_credentials=credentials,
            role_arn=settings.role_arn,
            extra_args={"RoleSessionName": "autoscaler"},
        )
        return DeferredRefreshableCredentials(method=self.METHOD, refresh_using=fetcher.fetch_credentials)


def _config() -> Config:
    return Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=_READ_THREADS + _LONG_READ_THREADS + _WRITE_THREADS,
        ignore_configured_endpoint_urls=True,
    )


class AwsClients:
    """Calls into the SDK. `call` gets the `Sdk` and runs in a thread; what it raises comes out as a ProviderError."""

    def __init__(self, settings: AwsSettings, gates: Gates, clock: Clock) -> None:
        self.sdk = Sdk(settings)
        self._budgets = RateBudgets(_FAMILIES, clock)
        self._reads = gates.gate(f"{settings.name}-reads", threads=_READ_THREADS)
        self._long_reads = gates.gate(f"{settings.name}-long-reads", threads=_LONG_READ_THREADS)
        self._writes = gates.gate(f"{settings.name}-writes", threads=_WRITE_THREADS)

    async def read(
        self,
        call: Callable[[Sdk], T],
        context: Context,
        *,
        pages: int = 1,
        timeout_s: float = _GATE_S,
        can_wait: bool = False,
        is_long: bool = False,
    ) -> T:
        """`pages`: how many calls a listing will probably take; `can_wait`: others go first; `is_long`: in threads of
        their own."""
        await self._budgets.take(context.family, pages, can_wait=can_wait)
        return await self._run(self._long_reads if is_long else self._reads, call, context, timeout_s)

    async def write(self, call: Callable[[Sdk], T], context: Context, *, machines: int = 0) -> T:
        """Raises OutcomeUnknown where the call may have taken effect. `machines`: how many it launches at most; those
        that it did not are for `not_launched`."""
        if machines:
            await self._budgets.take("machines", machines)
        try:
            await self._budgets.take(context.family)
            return await self._run(self._writes, call, context, _GATE_S)
        except ProviderError as error:
            if not isinstance(error, OutcomeUnknown) or isinstance(error, TokenBurnt):
                self.not_launched(machines)
            raise

    def not_launched(self, machines: int) -> None:
        """Machines that a launch asked for in vain: EC2 counts what it makes. Else one refused burst of spot would keep
        on-demand machines waiting for minutes."""
        self._budgets.give_back("machines", machines)

    def budgets(self) -> tuple[RateBudget, ...]:
        return self._budgets.budgets()

    async def _run(self, gate: Any, call: Callable[[Sdk], T], context: Context, timeout_s: float) -> T:
        try:
            answer: T = await gate.call(call, self.sdk, timeout_s=timeout_s)
        except Exception as error:
            meant = translate(error, context)
            if isinstance(meant, Throttled):
                self._budgets.throttled(context.family, meant.retry_after_s)
            if meant is error:
                raise
            raise meant from _without_secrets(error)
        return answer


def _without_secrets(error: Exception) -> Exception | None:
    """What may stand in a traceback: an SDK's parameter errors quote what they were given."""
    return error if isinstance(error, ProviderError | TimeoutError | OSError) else None


def pages(method: Callable[..., Mapping[str, Any]], key: str, **parameters: Any) -> Iterator[Any]:
    """Every item of a paged answer; a page that fails fails all. Blocking."""
    token = ""
    while True:
        answer = method(**parameters, **({"NextToken": token} if token else {}))
        yield from answer.get(key, ())
        token = answer.get("NextToken") or ""
        if not token:
            return
