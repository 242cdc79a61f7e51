"""The Google clients of one provider: made once, called in bounded threads, their errors translated.

    reads       listings, lookups, polls of operations
    writes      launches, terminations, stops and starts
    notices     the poll for preemptions, so that nothing holds it up

`_unary` methods only: the others poll their operation by a client of their own, which ignores `endpoint_url` and
blocks. The SDK's own retries are off: the core is the one that repeats.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar

import google.auth
import google.auth.exceptions
import google.oauth2.credentials
from google.api_core import exceptions as api_errors
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import compute_v1

from autoscaler.spi import Clock, Gates, ProviderError, RateBudget, Secret, Throttled
from providers.gce_errors import Context, translate
from providers.gce_settings import GceSettings
from providers.rate_budgets import Family, RateBudgets

T = TypeVar("T")

PAGE = 500
"""The most that the API gives in one page."""
CALL_S = 15.0
"""The SDK's timeout, shorter than the gates'."""
_GATE_S = 20.0
_ROUNDING = timedelta(seconds=5)
_SCOPES = ("https://www.googleapis.com/auth/compute",)
_ENDPOINT = "https://compute.googleapis.com"
# Google counts 1,500 a minute in each of these groups, in whole minutes: half at once and half refilled stay below it
# in every one. Bulk inserts: 20 a second, 10 at a time.
_A_GROUP = Family(limit=750, refill_per_s=12.5)
_FAMILIES = {
    "launches": Family(limit=10, refill_per_s=10),
    "changes": _A_GROUP,
    "reads": _A_GROUP,
    "lists": _A_GROUP,
    "operations": _A_GROUP,
}
_READ_THREADS = 4
_WRITE_THREADS = 8


class Sdk:
    """Every client, made at its first use; to be used in threads of the gates only: making one may read files and ask
    the metadata server for credentials."""

    def __init__(self, settings: GceSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.RLock()
        self.is_ahead_by = timedelta(0)
        """Google's clock before ours, by its last answer, which tells whole seconds."""

    @property
    def project(self) -> str:
        return self._settings.project

    @cached_property
    def instances(self) -> compute_v1.InstancesClient:
        return self._make(compute_v1.InstancesClient)

    @cached_property
    def region_instances(self) -> compute_v1.RegionInstancesClient:
        return self._make(compute_v1.RegionInstancesClient)

    @cached_property
    def region_operations(self) -> compute_v1.RegionOperationsClient:
        return self._make(compute_v1.RegionOperationsClient)

    @cached_property
    def zone_operations(self) -> compute_v1.ZoneOperationsClient:
        return self._make(compute_v1.ZoneOperationsClient)

    @cached_property
    def images(self) -> compute_v1.ImagesClient:
        return self._make(compute_v1.ImagesClient)

    @cached_property
    def subnetworks(self) -> compute_v1.SubnetworksClient:
        return self._make(compute_v1.SubnetworksClient)

    @cached_property
    def regions(self) -> compute_v1.RegionsClient:
        return self._make(compute_v1.RegionsClient)

    @cached_property
    def projects(self) -> compute_v1.ProjectsClient:
        return self._make(compute_v1.ProjectsClient)

    def pages(self, path: str, **parameters: str) -> Iterator[Mapping[str, Any]]:
        """Every page of a listing below the project, as JSON. Parsing 10,000 instances takes 0.2 s this way, and 5 s
        into the SDK's messages (measured), which is too much for a listing each 30 s."""
        asked = {"maxResults": str(PAGE), **parameters}
        while True:
            page = self.get(path, **asked)
            yield page
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def get(self, path: str, **parameters: str) -> Mapping[str, Any]:
        """One resource or page below the project, as JSON."""
        found: Mapping[str, Any] = self._ask(path, parameters).json()
        return found

    def _ask(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self._settings.endpoint_url or _ENDPOINT}/compute/v1/projects/{self.project}/{path}"
        response = self._session.get(url, params=parameters, timeout=CALL_S)
        if said := response.headers.get("Date"):
            self.is_ahead_by = parsedate_to_datetime(said) - self._clock.now()
        if response.status_code >= 400:
            raise api_errors.from_http_response(response)
        return response

    @cached_property
    def _session(self) -> AuthorizedSession:
        return AuthorizedSession(self.credentials)

    @cached_property
    def credentials(self) -> Any:
        """Raises GoogleAuthError."""
        with self._lock:
            if (given := self._settings.credentials) is not None:
                return _credentials_of(given)
            if self._settings.endpoint_url:
                return AnonymousCredentials()
            credentials, _ = google.auth.default(scopes=_SCOPES)
            return credentials

    def _make(self, client: Callable[..., T]) -> T:
        options = ClientOptions(api_endpoint=self._settings.endpoint_url or None)
        return client(credentials=self.credentials, client_options=options)


def _credentials_of(given: Secret) -> Any:
    """A key file's text, of any type that Google writes, or an access token."""
    text = given.reveal()
    if not text.lstrip().startswith("{"):
        return google.oauth2.credentials.Credentials(token=text.strip())
    try:
        credentials, _ = google.auth.load_credentials_from_dict(json.loads(text), scopes=_SCOPES)
    except ValueError:  # its text may quote the key
        raise google.auth.exceptions.DefaultCredentialsError("the key file is not one of Google's") from None
    return credentials


class GceClients:
    """Calls into the SDK. `call` gets the `Sdk` and runs in a thread; what it raises comes out as a ProviderError."""

    def __init__(self, settings: GceSettings, gates: Gates, clock: Clock) -> None:
        self._clock = clock
        self._sdk = Sdk(settings, clock)
        self._budgets = RateBudgets(_FAMILIES, clock)
        self._reads = gates.gate(f"{settings.name}-reads", threads=_READ_THREADS)
        self._writes = gates.gate(f"{settings.name}-writes", threads=_WRITE_THREADS)
        self._notices = gates.gate(f"{settings.name}-notices", threads=1)

    async def read(
        self, call: Callable[[Sdk], T], context: Context, *, timeout_s: float = _GATE_S, pages: int = 1
    ) -> T:
        """`pages`: how many calls a listing will probably take."""
        return await self._run(self._reads, call, context, timeout_s, pages)

    async def write(self, call: Callable[[Sdk], T], context: Context) -> T:
        """Raises OutcomeUnknown where the call may have taken effect."""
        return await self._run(self._writes, call, context, _GATE_S)

    def google_now(self) -> datetime:
        """What Google's clock says: instants of its answers are compared with this, whatever ours says."""
        return self._clock.now() + self.clock_error

    @property
    def clock_error(self) -> timedelta:
        """What our clock lacks to Google's; nothing where it is no more than an answer's way and rounding explain."""
        ahead = self._sdk.is_ahead_by
        return ahead if abs(ahead) > _ROUNDING else timedelta(0)

    def budgets(self) -> tuple[RateBudget, ...]:
        return self._budgets.budgets()

    async def look_for_notices(self, call: Callable[[Sdk], T], context: Context) -> T:
        return await self._run(self._notices, call, context, _GATE_S)

    async def _run(self, gate: Any, call: Callable[[Sdk], T], context: Context, timeout_s: float, cost: int = 1) -> T:
        await self._budgets.take(context.family, cost)
        try:
            answer: T = await gate.call(call, self._sdk, timeout_s=timeout_s)
        except ProviderError:
            raise
        except Exception as error:
            meant = translate(error, context)
            if isinstance(meant, Throttled):
                self._budgets.throttled(context.family, meant.retry_after_s)
            raise meant from error
        return answer
