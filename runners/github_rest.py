"""GitHub's REST over aiohttp: one call, or all pages of a listing with ETags. No retries, no sleeps.

Order of a call: budget -> credentials -> request (redirects by hand, to our own host only) -> what the headers say ->
errors. Answers 401, rate limits, 5xx and silence become `spi` errors here; all others are the caller's to read.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from autoscaler.spi import ForgeError, ForgeUnavailable
from runners.github_auth import API_VERSION, USER_AGENT, Auth
from runners.github_budgets import CORE, Budgets
from runners.github_errors import Answer, Purpose, refusal, unanswered

# Shorter than any deadline of the core's, longer than GitHub's own 10 s limit for one request.
_TIMEOUT_S = 15.0
_CONNECT_TIMEOUT_S = 5.0
_CONNECTIONS = 50
_REDIRECTS = 3
_PAGES = 1000

# Parsed pages kept for 304 answers: about one for each open run and four for each polled repository.
_CACHED_PAGES = 4096

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Cached:
    etag: str
    value: Any
    next_url: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing, parsed. `was_fresh` is False for a 304, which costs no primary budget."""

    value: T
    was_fresh: bool


class Rest:
    """The HTTP client of one GitHub forge."""

    def __init__(self, *, api_url: str, auth: Auth, budgets: Budgets, timeout_s: float = _TIMEOUT_S) -> None:
        self._base = URL(api_url)
        self._auth = auth
        self._budgets = budgets
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, _CONNECT_TIMEOUT_S))
        self._session: aiohttp.ClientSession | None = None
        self._pages: OrderedDict[tuple[str, str], _Cached] = OrderedDict()

    async def call(
        self,
        method: str,
        path: str,
        *,
        account: str,
        purpose: Purpose,
        body: Mapping[str, Any] | None = None,
        etag: str = "",
        family: str = CORE,
        is_listing: bool = False,
    ) -> Answer:
        """One call for the account ("" is the App itself). `path` is relative to the base, or one of its URLs.

        Raises RateLimited, ForgeUnauthorized for 401, ForgeUnavailable or ForgeOutcomeUnknown without an answer.
        """
        paid_by = self._auth.budget_of(account)
        self._budgets.admit(paid_by, purpose, is_listing=is_listing)
        url = self._url(path)
        answer = await self._request(method, url, account=account, purpose=purpose, body=body, etag=etag)
        if answer.status == 401 and self._auth.forget(account):
            # A revoked token, or an installation made anew: nothing was done, so a second try is safe.
            answer = await self._request(method, url, account=account, purpose=purpose, body=body, etag=etag)
        limited = self._budgets.learn(paid_by, answer, purpose, family=family)
        if limited is not None:
            raise limited
        if answer.status == 401 or answer.status >= 500:
            raise refusal(answer, purpose)
        return answer

    async def read(self, path: str, model: type[M], *, account: str, purpose: Purpose) -> M | None:
        """One resource; None where GitHub says 404."""
        answer = await self.call("GET", path, account=account, purpose=purpose)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise refusal(answer, purpose)
        return parsed(model, answer, purpose)

    async def page(
        self,
        path: str,
        read: Callable[[Answer], T],
        *,
        account: str,
        purpose: Purpose,
        is_listing: bool = False,
        remembered: bool = False,
    ) -> tuple[Page[T], str]:
        """One page and the URL of the next one ("" after the last).

        A page to be `remembered` is asked for with its ETag, and a 304 gives what was read last time: one URL must
        always come with the same `read`.
        """
        key = (account, str(self._url(path)))
        cached = self._pages.get(key) if remembered else None
        answer = await self.call(
            "GET", path, account=account, purpose=purpose, etag=cached.etag if cached else "", is_listing=is_listing
        )
        if answer.status == 304 and cached is not None:
            self._pages.move_to_end(key)
            return Page(cast(T, cached.value), was_fresh=False), cached.next_url
        if answer.status != 200:
            raise refusal(answer, purpose)
        value, next_url = read(answer), _next_of(answer)
        if remembered and (etag := answer.headers.get("etag")):
            self._pages[key] = _Cached(etag, value, next_url)
            self._pages.move_to_end(key)
            while len(self._pages) > _CACHED_PAGES:
                self._pages.popitem(last=False)
        return Page(value, was_fresh=True), next_url

    async def pages(
        self,
        path: str,
        read: Callable[[Answer], T],
        *,
        account: str,
        purpose: Purpose,
        is_listing: bool = False,
        remembered: bool = False,
    ) -> list[Page[T]]:
        """All pages of a listing, or an error. See `page`."""
        found: list[Page[T]] = []
        url = path
        while url:
            if len(found) == _PAGES:
                raise ForgeUnavailable(f"GitHub did not {purpose.does}: the listing does not end")
            page, url = await self.page(
                url, read, account=account, purpose=purpose, is_listing=is_listing, remembered=remembered
            )
            found.append(page)
        return found

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._pages.clear()

    def _url(self, path: str) -> URL:
        """The absolute URL; one that would carry our credentials to another host is refused."""
        if path.startswith("/"):
            return URL(f"{self._base}{path}", encoded=True)
        url = URL(path, encoded=True)
        if url.origin() != self._base.origin():
            raise ForgeUnavailable(f"GitHub's answer points to another host: {url.host}")
        return url

    async def _request(
        self, method: str, url: URL, *, account: str, purpose: Purpose, body: Mapping[str, Any] | None, etag: str
    ) -> Answer:
        headers = {"Authorization": await (self._auth.header(account) if account else self._auth.app_header())}
        if etag:
            headers["If-None-Match"] = etag
        for _ in range(_REDIRECTS):
            answer = await self._exchange(method, url, headers=headers, purpose=purpose, body=body)
            if answer.status not in (301, 302, 307, 308):
                return answer
            url = self._url(str(url.join(URL(answer.headers.get("location", ""), encoded=True))))
        raise ForgeUnavailable(f"GitHub did not {purpose.does}: redirected too often")

    async def _exchange(
        self, method: str, url: URL, *, headers: Mapping[str, str], purpose: Purpose, body: Mapping[str, Any] | None
    ) -> Answer:
        session = self._opened()
        try:
            async with session.request(method, url, headers=headers, json=body, allow_redirects=False) as response:
                content = await response.read()
                return Answer(
                    status=response.status,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=content,
                )
        except aiohttp.ClientConnectorError as error:
            # Never connected, so even a write did nothing.
            raise ForgeUnavailable(
                f"GitHub cannot be reached: {error.os_error.strerror or type(error).__name__}"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _without_answer(error, purpose) from None

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made at first use because it belongs to the running loop."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                headers={
                    "Accept": "application/vnd.github+json",
                    "X-GitHub-Api-Version": API_VERSION,
                    "User-Agent": USER_AGENT,
                },
                cookie_jar=aiohttp.DummyCookieJar(),
                # Not trust_env: it would look into .netrc, in a thread, on every request.
                proxy=_proxy_for(self._base),
            )
        return self._session


def _proxy_for(url: URL) -> str | None:
    """The environment's proxy for our host."""
    if proxy_bypass(url.host or ""):
        return None
    return getproxies().get(url.scheme)


def parsed(model: type[M], answer: Answer, purpose: Purpose) -> M:
    """The answer's body as the model; an unreadable one is no answer."""
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise unanswered(f"unreadable answer {answer.status} ({place}: {first['msg']})", purpose) from None


def _without_answer(error: Exception, purpose: Purpose) -> ForgeError:
    why = "no answer in time" if isinstance(error, (TimeoutError, asyncio.TimeoutError)) else type(error).__name__
    return unanswered(why, purpose)


def _next_of(answer: Answer) -> str:
    """The rel="next" URL of the Link header."""
    for part in answer.headers.get("link", "").split(","):
        target, _, parameters = part.partition(";")
        if 'rel="next"' in parameters.replace(" ", ""):
            return target.strip().strip("<>")
    return ""
