"""Who may call the sandbox's GitLab API and how often: tokens with scopes, rate limits, request parameters, pages.

Owns what every REST answer has in common. Facts: GitLab spec 1.4 (pagination), 1.7 (limits), 2.2 (scopes).
"""

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import TypeVar
from urllib.parse import urlencode

from aiohttp import web

from autoscaler.sandbox.gitlab_model import GitLabRefusal

T = TypeVar("T")
WINDOW_S = 60
SCOPES = frozenset({"api", "read_api", "create_runner", "manage_runner", "read_user", "self_rotate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLabLimits:
    """Limits and delays of the face; None switches a limit off.

    `jobs_per_minute`: project job lists per token (application limit, no headers); `api_per_minute`: all API calls per
    token (RateLimit-* headers); `requests_per_minute`: jobs/request per runner token; `long_poll_s`: how long
    jobs/request is held while nothing changed; `trace_interval_s`: X-GitLab-Trace-Update-Interval; `latency_s`: added
    to every answer.
    """

    jobs_per_minute: int | None = 600
    api_per_minute: int | None = None
    requests_per_minute: int | None = 2000
    long_poll_s: float = 0.0
    trace_interval_s: int = 3
    latency_s: float = 0.0


class Windows:
    """Counts calls per key in fixed windows of a minute; an old window is forgotten when the next begins."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._window = -1
        self._counts: dict[tuple[str, str], int] = {}

    def count(self, family: str, key: str) -> int:
        """Count one call and say how many this window has seen of `key` in `family`."""
        window = int(self._clock() // WINDOW_S)
        if window != self._window:
            self._window, self._counts = window, {}
        self._counts[family, key] = self._counts.get((family, key), 0) + 1
        return self._counts[family, key]

    def reset_at(self) -> int:
        """When the window ends (epoch seconds)."""
        return (int(self._clock() // WINDOW_S) + 1) * WINDOW_S

    def headers(self, limit: int, observed: int) -> dict[str, str]:
        """RateLimit-* headers; with Retry-After and RateLimit-ResetTime once the limit is passed."""
        reset = self.reset_at()
        headers = {
            "RateLimit-Limit": str(limit),
            "RateLimit-Name": "throttle_authenticated_api",
            "RateLimit-Observed": str(observed),
            "RateLimit-Remaining": str(max(0, limit - observed)),
            "RateLimit-Reset": str(reset),
        }
        if observed > limit:
            headers["Retry-After"] = str(max(1, int(reset - self._clock())))
            headers["RateLimit-ResetTime"] = formatdate(reset, usegmt=True)
        return headers


class AccessTokens:
    """Access tokens and their scopes."""

    def __init__(self, tokens: Mapping[str, Iterable[str]]) -> None:
        self._tokens = {token: frozenset(scopes) for token, scopes in tokens.items()}
        for scopes in self._tokens.values():
            if scopes - SCOPES:
                raise ValueError(f"unknown scopes: {sorted(scopes - SCOPES)}")

    @staticmethod
    def presented(request: web.Request) -> str | None:
        """The token of PRIVATE-TOKEN or Authorization: Bearer."""
        token = request.headers.get("PRIVATE-TOKEN")
        if token is None:
            scheme, _, value = request.headers.get("Authorization", "").partition(" ")
            token = value.strip() if scheme.lower() == "bearer" and value else None
        return token

    def scopes(self, request: web.Request) -> frozenset[str]:
        """The scopes of the caller's token; GitLabRefusal 401 when there is none or it is unknown."""
        token = (self.presented(request) or "").encode()
        for known, scopes in self._tokens.items():
            if hmac.compare_digest(known.encode(), token):
                return scopes
        raise GitLabRefusal(401, "401 Unauthorized")

    def require(self, request: web.Request, *allowed: str) -> None:
        """GitLabRefusal 401 without a valid token, 403 insufficient_scope without one of the scopes."""
        if not self.scopes(request).intersection(allowed):
            raise InsufficientScope(allowed)


class InsufficientScope(GitLabRefusal):
    """A valid token that may not do this: 403 in the shape of an OAuth error."""

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(403, "insufficient_scope")
        self.body = {
            "error": "insufficient_scope",
            "error_description": "The request requires higher privileges than provided by the access token.",
            "scope": " ".join(allowed),
        }


async def json_body(request: web.Request) -> dict[str, object]:
    """A JSON object body; GitLabRefusal 415 for another content type, 400 for what is not an object."""
    if request.content_type != "application/json":
        raise GitLabRefusal(415, f"The provided content-type '{request.content_type}' is not supported.")
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise GitLabRefusal(400, "400 Bad request - the body is not JSON") from None
    if not isinstance(body, dict):
        raise GitLabRefusal(400, "400 Bad request - the body is not a JSON object")
    return body


async def parameters(request: web.Request) -> dict[str, object]:
    """Query, form and JSON parameters as one mapping, as Grape merges them; `name[]` becomes a list `name`."""
    found: dict[str, object] = {}
    pairs: list[tuple[str, object]] = list(request.query.items())
    if request.can_read_body:
        if request.content_type in {"application/x-www-form-urlencoded", "multipart/form-data"}:
            pairs.extend((await request.post()).items())
        else:
            found.update(await json_body(request))
    for name, value in pairs:
        if name.endswith("[]"):
            values = found.setdefault(name.removesuffix("[]"), [])
            if isinstance(values, list):
                values.append(value)
        else:
            found[name] = value
    return found


def as_bool(value: object, name: str) -> bool:
    """Grape's booleans; GitLabRefusal 400 for anything else."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in {"true", "1", "t"}:
        return True
    if str(value).lower() in {"false", "0", "f"}:
        return False
    raise GitLabRefusal(400, f"{name} is invalid")


def as_int(value: object, name: str) -> int:
    """An integer parameter; GitLabRefusal 400 for anything else."""
    try:
        return int(str(value))
    except ValueError:
        raise GitLabRefusal(400, f"{name} is invalid") from None


def as_words(value: object) -> list[str]:
    """A list parameter: a JSON array, repeated `name[]`, or comma separated."""
    words = value if isinstance(value, list) else str(value).split(",")
    return list(dict.fromkeys(str(word).strip() for word in words if str(word).strip()))


def _link(request: web.Request, base_url: str, **changes: str) -> str:
    query = [(name, value) for name, value in request.query.items() if name not in changes]
    path = request.raw_path.split("?", 1)[0]
    return f"{base_url}{path}?{urlencode([*query, *changes.items()])}"


def _per_page(request: web.Request) -> int:
    per_page = as_int(request.query.get("per_page", "20"), "per_page")
    if per_page < 1:
        raise GitLabRefusal(400, "per_page does not have a valid value")
    return min(100, per_page)


def paginate(
    request: web.Request, items: Sequence[T], show: Callable[[T], object], *, base_url: str, totals: bool = True
) -> web.Response:
    """Offset pagination with X-* and Link headers; without totals where GitLab does not count (jobs)."""
    per_page, page = _per_page(request), as_int(request.query.get("page", "1"), "page")
    if page < 1:
        raise GitLabRefusal(400, "page does not have a valid value")
    start = (page - 1) * per_page
    last = max(1, -(-len(items) // per_page))
    more = start + per_page < len(items)
    pages = {"prev": page - 1 if page > 1 else None, "next": page + 1 if more else None, "first": 1}
    headers = {
        "X-Page": str(page),
        "X-Per-Page": str(per_page),
        "X-Next-Page": str(page + 1) if more else "",
        "X-Prev-Page": str(page - 1) if page > 1 else "",
    }
    if totals:
        headers |= {"X-Total": str(len(items)), "X-Total-Pages": str(last)}
        pages["last"] = last
    size = str(per_page)
    links = {rel: _link(request, base_url, page=str(to), per_page=size) for rel, to in pages.items() if to is not None}
    headers["Link"] = ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())
    return web.json_response([show(item) for item in items[start : start + per_page]], headers=headers)


def keyset(
    request: web.Request, items: Sequence[T], show: Callable[[T], object], *, base_url: str, key: Callable[[T], int]
) -> web.Response:
    """Keyset pagination over items in the order of their ids: only a `next` link, to be followed verbatim."""
    if request.query.get("order_by", "id") != "id":
        raise GitLabRefusal(405, "Keyset pagination is not yet available for this type of request")
    per_page, descending = _per_page(request), request.query.get("sort", "desc") == "desc"
    cursor = request.query.get("cursor")
    if cursor is not None:
        after = _after(cursor)
        items = [item for item in items if (key(item) < after if descending else key(item) > after)]
    page = items[:per_page]
    headers = {"X-Per-Page": str(per_page)}
    if len(items) > per_page:
        text = json.dumps({"id": str(key(page[-1])), "_kd": "n"}).encode()
        url = _link(request, base_url, cursor=base64.urlsafe_b64encode(text).decode())
        headers["Link"] = f'<{url}>; rel="next"'
    return web.json_response([show(item) for item in page], headers=headers)


def _after(cursor: str) -> int:
    try:
        return int(json.loads(base64.urlsafe_b64decode(cursor))["id"])
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise GitLabRefusal(400, "cursor is invalid") from None
