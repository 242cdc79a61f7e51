"""What all handlers of the sandbox's GitHub API share: the request's context, errors, pages."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import web

from autoscaler.sandbox.github_auth import Caller
from autoscaler.sandbox.github_model import GitHubError, Json
from autoscaler.sandbox.github_payloads import Urls

CALLER = web.RequestKey("caller", Caller)
GHES_PREFIX = "/api/v3"
MAX_PAGE = 100
_Row = TypeVar("_Row")


def urls(request: web.Request) -> Urls:
    """The addresses that this client knows us by."""
    origin = str(request.url.origin())
    return Urls(origin + (GHES_PREFIX if request.path.startswith(GHES_PREFIX) else ""), origin)


def answer(status: int, body: Any) -> web.Response:
    return web.json_response(body, status=status, headers={"X-GitHub-Media-Type": "github.v3; format=json"})


def failure(status: int, message: str) -> web.Response:
    body: Json = {"message": message, "documentation_url": "https://docs.github.com/rest"}
    if status != 422:
        body["status"] = str(status)
    return answer(status, body)


def with_etag(request: web.Request, response: web.Response) -> web.Response:
    """The response with its ETag, or 304 when the client has it already."""
    assert isinstance(response.body, bytes)
    etag = f'W/"{hashlib.sha256(response.body).hexdigest()}"'
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if etag.removeprefix("W/") in known:
        response = web.Response(status=304)
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = "private, max-age=60, s-maxage=60"
    return response


def integer(request: web.Request, name: str) -> int:
    """A path parameter; what is not a number is not found."""
    try:
        return int(request.match_info[name])
    except ValueError as error:
        raise GitHubError(404, "Not Found") from error


def page(
    request: web.Request, rows: Sequence[_Row], render: Callable[[_Row], Json], *, key: str | None = None
) -> web.Response:
    """One page of rows by `page` and `per_page` with its Link header; under `key` with `total_count`, or bare."""
    size = min(MAX_PAGE, max(1, _query_number(request, "per_page", 30)))
    number = max(1, _query_number(request, "page", 1))
    last = max(1, -(-len(rows) // size))
    items = [render(row) for row in rows[(number - 1) * size : number * size]]
    response = answer(200, items if key is None else {"total_count": len(rows), key: items})
    wanted = {"prev": number - 1, "next": number + 1, "last": last, "first": 1}
    if number == 1:
        del wanted["prev"], wanted["first"]
    if number >= last:
        del wanted["next"], wanted["last"]
    links = [
        f'<{request.url.update_query(page=str(to), per_page=str(size))}>; rel="{rel}"' for rel, to in wanted.items()
    ]
    if links:
        response.headers["Link"] = ", ".join(links)
    return response


def cursor_page(
    request: web.Request, rows: Sequence[_Row], number_of: Callable[[_Row], int], render: Callable[[_Row], Json]
) -> web.Response:
    """One page of rows (newest first) by `cursor`, which names the first row of the page."""
    size = min(MAX_PAGE, max(1, _query_number(request, "per_page", 30)))
    cursor = request.query.get("cursor", "")
    if cursor:
        try:
            start = int(cursor.removeprefix("v1_"))
        except ValueError as error:
            raise GitHubError(422, "Invalid cursor") from error
        rows = [row for row in rows if number_of(row) <= start]
    response = answer(200, [render(row) for row in rows[:size]])
    if len(rows) > size:
        following = request.url.update_query(cursor=f"v1_{number_of(rows[size])}", per_page=str(size))
        response.headers["Link"] = f'<{following}>; rel="next"'
    return response


async def json_body(request: web.Request) -> Json:
    """The request's JSON object; empty when there is no body."""
    raw = await request.read()
    try:
        body = json.loads(raw) if raw else {}
    except ValueError as error:
        raise GitHubError(400, "Problems parsing JSON") from error
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise GitHubError(400, "Body should be a JSON object")
    return body


def _query_number(request: web.Request, name: str, default: int) -> int:
    try:
        return int(request.query.get(name, default))
    except ValueError:
        return default
