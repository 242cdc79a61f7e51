"""Holds each exchange of the sandbox's GitHub API against GitHub's own OpenAPI description."""

import functools
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.templating.responses.exceptions import ResponseNotFound
from openapi_core.testing import MockRequest, MockResponse

from tests.shared import SHARED

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DESCRIPTION = SHARED / "fixtures" / "github" / "openapi-subset.json"
HOST = "https://api.github.com"
# Real paths of github.com that the cut description leaves out, and the sandbox's own.
NOT_DESCRIBED = re.compile(
    r"/_broker/.*|/_logs/.*|/orgs/[^/]+|/orgs/[^/]+/repos|/repos/[^/]+/[^/]+"
    r"|/repos/[^/]+/[^/]+/(check-runs(/\d+)?|statuses/[^/]+|commits/[^/]+(/check-runs|/statuses)?)"
)
# Bodies that the tests send wrong on purpose, to see the refusal.
REFUSED = (400, 401, 403, 404, 405, 409, 422, 429, 502)


@functools.cache
def description(path: Path = DESCRIPTION) -> OpenAPI:
    """The description with its two known slips mended: null in enums, and an installation's account.

    The list of installations spells its item out with `allOf` user and enterprise, which no account can be both;
    the single installation refers to the component, which says `anyOf`.
    """
    spec = _with_null_in_enums(json.loads(path.read_text()))
    listed = spec["paths"]["/app/installations"]["get"]["responses"]["200"]["content"]["application/json"]
    listed["schema"]["items"] = {"$ref": "#/components/schemas/installation"}
    return OpenAPI.from_dict(spec)


def _with_null_in_enums(node: Any) -> Any:
    """The description says `nullable` beside enums that lack null (a job's conclusion); GitHub does answer null."""
    if isinstance(node, list):
        return [_with_null_in_enums(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _with_null_in_enums(value) for key, value in node.items()}
    if made.get("nullable") is True and isinstance(made.get("enum"), list) and None not in made["enum"]:
        made["enum"] = [*made["enum"], None]
    return made


class LawfulExchanges:
    """A middleware that notes what breaks the description; the test asserts that there is nothing."""

    def __init__(self, api: OpenAPI) -> None:
        self._api = api
        self.violations: list[str] = []
        self.checked = 0

    @classmethod
    def load(cls) -> "LawfulExchanges | None":
        return cls(description()) if DESCRIPTION.is_file() else None

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        body = await request.read()
        response = await handler(request)
        path = request.path.removeprefix("/api/v3")
        if not NOT_DESCRIBED.fullmatch(path):
            assert isinstance(response, web.Response)
            self.check(request.method, path, dict(request.query), body, response)
        return response

    def check(self, method: str, path: str, query: dict[str, str], body: bytes, response: web.Response) -> None:
        """A 304 belongs to HTTP; `created` is described as a date-time, but documented as a search with ranges."""
        if response.status == 304:
            return
        self.checked += 1
        query = {key: value for key, value in query.items() if key != "created"}
        asked = MockRequest(
            HOST, method.lower(), path, args=query, data=body or None, content_type="application/json" if body else ""
        )
        raw = response.body if isinstance(response.body, bytes) else b""
        answered = MockResponse(
            raw, response.status, dict(response.headers), content_type=response.content_type.partition(";")[0]
        )
        where = f"{method} {path} -> {response.status}"
        try:
            if response.status not in REFUSED:
                self._api.validate_request(asked)
            self._api.validate_response(asked, answered)
        except ResponseNotFound:
            self._check_undocumented(where, response.status, raw)
        except OpenAPIError as error:
            cause = error.__cause__
            self.violations.append(f"{where}: {error!r} {getattr(cause, 'schema_errors', cause)!r}")

    def _check_undocumented(self, where: str, status: int, raw: bytes) -> None:
        """Refusals that the description leaves out still have GitHub's error body (a 502 is a proxy's page)."""
        if status == 502:
            return
        if status not in REFUSED or not {"message", "documentation_url"} <= set(json.loads(raw)):
            self.violations.append(f"{where}: not described and no error body")
