"""Owns the conversation with GitLab's REST API: python-gitlab in gate threads, one client per thread and token.

- python-gitlab rides on requests.Session, which is not promised to be thread safe: hence a client per thread.
- Its own retries and sleeps are off (one retry owner: the core), its time limit is shorter than the gate's.
- Redirects are refused: requests would send the PRIVATE-TOKEN header on to wherever they lead.
- Lists are paged here, one bounded gate call per page, rather than by python-gitlab's iterator, which would hold a
  thread for as long as a list has pages and could not be cancelled in between. aiohttp would save the threads, at
  the price of a second client with its own authentication, limits and error table; at 600 job lists a minute
  threads are cheap enough. Of the `Link` header only the query is followed, so that a GitLab behind a proxy, which
  announces another address than ours, works and never receives our token elsewhere.
- A write without an answer is ForgeOutcomeUnknown, unless no connection was made at all.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import gitlab
import gitlab.exceptions
import requests
import urllib3.exceptions

from autoscaler.calls import GateBusy
from autoscaler.spi import (
    ForgeError,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeUnavailable,
    Gate,
    RateBudget,
    RateLimited,
    Secret,
    Surroundings,
)
from runners.gitlab_budget import Budgets
from runners.gitlab_errors import Operation, Refused, translate
from runners.gitlab_settings import Access

READ_THREADS = 8
WRITE_THREADS = 8
SDK_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 25.0
"""More than the SDK's: it includes waiting for a free thread behind one call that runs into its own limit."""
PAGE = 100
_MAX_PAGES = 1000

Row = dict[str, Any]
Query = Mapping[str, str | int | list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a thread brings back. Header names are lower case."""

    value: Any
    headers: dict[str, str]
    next_query: str | None = None
    refused: Refused | None = None


class Rest:
    """Calls with budgets and errors of the contract. Values are what the JSON said, unchecked."""

    def __init__(self, name: ForgeName, access: Access, surroundings: Surroundings) -> None:
        self.name = name
        self._access = access
        self._clock = surroundings.clock
        self._gates = surroundings.gates
        self._budgets = Budgets(surroundings.clock, has_runner_token=access.runner_token is not None)
        self._clients = _Clients(access)

    @property
    def budgets(self) -> Budgets:
        return self._budgets

    def rate_budgets(self) -> tuple[RateBudget, ...]:
        return self._budgets.snapshot()

    async def get(self, path: str, operation: Operation, query: Query | None = None) -> Row:
        """One object. Raises ForgeError; Absent on 404."""
        return self._object(await self._call("get", path, operation, query=query), operation, path)

    async def list(self, path: str, operation: Operation, query: Query | None = None) -> list[Row]:
        """Every row of a list, all pages, or raise."""
        rows: list[Row] = []
        page: dict[str, Any] = {**(query or {}), "per_page": PAGE}
        for _ in range(_MAX_PAGES):
            answer = await self._call("get", path, operation, query=page)
            rows.extend(self._rows(answer, operation, path))
            if answer.next_query is None:
                return rows
            page = dict(parse_qs(answer.next_query))
        raise ForgeUnavailable(f"{self.name}: could not {operation.doing} ({path}): more than {_MAX_PAGES} pages")

    async def page(self, path: str, operation: Operation, query: Query | None = None) -> Sequence[Row]:
        """The first page of a list, for who needs no more."""
        answer = await self._call("get", path, operation, query={**(query or {}), "per_page": PAGE})
        return self._rows(answer, operation, path)

    async def post(self, path: str, operation: Operation, body: Row | None = None, query: Query | None = None) -> Row:
        """Create or act. Raises ForgeError; ForgeOutcomeUnknown where it may have taken effect."""
        return self._object(await self._call("post", path, operation, query=query, body=body), operation, path)

    async def put(self, path: str, operation: Operation, body: Row) -> Row:
        """Change. Raises as `post`."""
        return self._object(await self._call("put", path, operation, body=body), operation, path)

    async def delete(self, path: str, operation: Operation) -> None:
        """Remove. Raises as `post`."""
        await self._call("delete", path, operation)

    def close(self) -> None:
        """Close every client. Calls still under way in threads fail."""
        self._clients.close()

    async def _call(
        self, verb: str, path: str, operation: Operation, *, query: Query | None = None, body: Row | None = None
    ) -> _Answer:
        as_runner = operation.uses_runner_token and self._access.runner_token is not None
        try:
            self._budgets.spend(operation.family, uses_runner_token=as_runner)
        except RateLimited as error:
            text = f"{self.name}: did not {operation.doing}: {error}"
            raise RateLimited(text, retry_after_s=error.retry_after_s, family=error.family) from None
        try:
            answer: _Answer = await self._gate(operation).call(
                self._clients.request, verb, path, query=query, body=body, as_runner=as_runner, timeout_s=CALL_TIMEOUT_S
            )
        except (TimeoutError, requests.RequestException, gitlab.exceptions.GitlabError) as error:
            raise self._without_answer(error, operation, path) from error
        self._budgets.learn(answer.headers, uses_runner_token=as_runner)
        if answer.refused is None:
            return answer
        if answer.refused.status == 429:
            self._budgets.block(answer.refused, operation.family, uses_runner_token=as_runner)
        raise translate(answer.refused, operation, forge=self.name, now_s=self._clock.now().timestamp())

    def _gate(self, operation: Operation) -> Gate:
        if operation.is_write:
            return self._gates.gate(f"{self.name}.write", threads=WRITE_THREADS)
        return self._gates.gate(f"{self.name}.read", threads=READ_THREADS)

    def _without_answer(self, error: Exception, operation: Operation, path: str) -> ForgeError:
        what = f"{self.name}: could not {operation.doing} ({path}): {_describe(error)}"
        if isinstance(error, (requests.TooManyRedirects, gitlab.exceptions.RedirectError)):
            return ForgeRefused(f"{what}; GitLab redirects: set url (or api_url) to its final address")
        if operation.is_write and not _never_sent(error):
            return ForgeOutcomeUnknown(what)
        return ForgeUnavailable(what)

    def _rows(self, answer: _Answer, operation: Operation, path: str) -> Sequence[Row]:
        if not isinstance(answer.value, list) or not all(isinstance(row, dict) for row in answer.value):
            raise ForgeUnavailable(f"{self.name}: could not {operation.doing} ({path}): the answer is not a list")
        return cast(Sequence[Row], answer.value)

    def _object(self, answer: _Answer, operation: Operation, path: str) -> Row:
        if isinstance(answer.value, dict):
            return answer.value
        failure = ForgeOutcomeUnknown if operation.is_write else ForgeUnavailable
        raise failure(f"{self.name}: could not {operation.doing} ({path}): the answer is not an object")


class _Clients:
    """python-gitlab clients by thread and token. `request` runs in gate threads."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._local = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []

    def request(self, verb: str, path: str, *, query: Query | None, body: Row | None, as_runner: bool) -> _Answer:
        """One HTTP exchange. Raises requests' and python-gitlab's errors where there is no usable answer."""
        client = self._client(as_runner)
        headers: dict[str, str] = {}

        def keep_headers(response: requests.Response, *_: Any, **__: Any) -> None:
            headers.update({name.lower(): value for name, value in response.headers.items()})

        client.session.hooks["response"] = [keep_headers]  # python-gitlab's errors do not carry headers.
        try:
            response = client.http_request(
                verb, path, query_data=dict(query or {}), post_data=body, obey_rate_limit=False, max_retries=0
            )
        except gitlab.exceptions.GitlabError as error:
            if error.response_code is None:
                raise
            refused = Refused(status=error.response_code, text=str(error.error_message), path=path, headers=headers)
            return _Answer(value=None, headers=headers, refused=refused)
        value = response.json() if response.content and verb != "delete" else None
        following = response.links.get("next", {}).get("url")
        return _Answer(value=value, headers=headers, next_query=urlsplit(following).query if following else None)

    def close(self) -> None:
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    def _client(self, as_runner: bool) -> gitlab.Gitlab:
        by_token: dict[bool, gitlab.Gitlab] = self._local.__dict__.setdefault("by_token", {})
        if as_runner not in by_token:
            by_token[as_runner] = self._make_client(as_runner)
        return by_token[as_runner]

    def _make_client(self, as_runner: bool) -> gitlab.Gitlab:
        token: Secret | None = self._access.runner_token if as_runner else self._access.token
        assert token is not None
        client = gitlab.Gitlab(
            self._access.base_url,
            private_token=token.reveal(),
            timeout=SDK_TIMEOUT_S,
            retry_transient_errors=False,
            keep_base_url=True,
        )
        client.session.max_redirects = 0
        with self._lock:
            self._sessions.append(client.session)
        return client


def _never_sent(error: Exception) -> bool:
    """No thread took the call, or no connection was made: the server cannot have seen it."""
    if isinstance(error, (GateBusy, requests.ConnectTimeout)):
        return True
    if not isinstance(error, requests.ConnectionError) or not error.args:
        return False
    cause = getattr(error.args[0], "reason", error.args[0])
    return isinstance(cause, urllib3.exceptions.NewConnectionError)


def _describe(error: Exception) -> str:
    """A short text: requests' own may quote whole URLs, and never helps more than its kind."""
    match error:
        case GateBusy():
            return "no free thread"
        case TimeoutError() | requests.Timeout():
            return "no answer in time"
        case requests.ConnectionError() if _never_sent(error):
            return "no connection"
        case requests.ConnectionError():
            return "the connection broke"
        case requests.JSONDecodeError():
            return "the answer is not JSON"
    return type(error).__name__
