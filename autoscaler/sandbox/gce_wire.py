"""How Compute Engine's API writes things: links, instants, numbers, fingerprints, errors, and pages of listings."""

import base64
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

Json = dict[str, Any]
_Row = TypeVar("_Row")

PREFIX = "/compute/v1/"
MAX_PAGE = 500
_PACIFIC = timezone(timedelta(hours=-8))
_RATE = "type.googleapis.com/google.rpc.ErrorInfo"


@dataclass(slots=True)
class GceError(Exception):
    """A refusal. `reason` is the code that clients decide by; `location` is the field or header it is about."""

    status: int
    reason: str
    message: str
    domain: str = "global"
    location: str = ""
    details: Sequence[Json] = field(default=())

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"

    def body(self) -> Json:
        one: Json = {"message": self.message, "domain": self.domain, "reason": self.reason}
        if self.location:
            is_header = self.location == "Authorization"
            one |= {"location": self.location, "locationType": "header" if is_header else "parameter"}
        error: Json = {"code": self.status, "message": self.message, "errors": [one]}
        if self.status == 401:
            error["status"] = "UNAUTHENTICATED"
        if self.details:
            error["details"] = list(self.details)
        return {"error": error}


def not_found(path: str) -> GceError:
    return GceError(404, "notFound", f"The resource '{path}' was not found")


def already_exists(path: str) -> GceError:
    return GceError(409, "alreadyExists", f"The resource '{path}' already exists")


def invalid(where: str, value: object, why: str) -> GceError:
    """`where` is the field as in "resource.scheduling.maxRunDuration"."""
    return GceError(400, "invalid", f"Invalid value for field '{where}': '{value}'. {why}")


def required(where: str) -> GceError:
    return GceError(400, "required", f"Required field '{where}' not specified", location=where)


def rate_exceeded(metric: str) -> GceError:
    details = [
        {
            "@type": _RATE,
            "reason": "RATE_LIMIT_EXCEEDED",
            "domain": "googleapis.com",
            "metadatas": {"service": "compute.googleapis.com", "quota_metric": metric},
        }
    ]
    return GceError(403, "rateLimitExceeded", "Rate Limit Exceeded", domain="usageLimits", details=details)


def too_many_requests() -> GceError:
    """What the front door says, before the API counts anything."""
    return GceError(429, "rateLimitExceeded", "Too many requests, retry later.", domain="usageLimits")


def instant(at: float) -> str:
    """Epoch seconds as the API writes them: milliseconds, in California."""
    return datetime.fromtimestamp(at, _PACIFIC).isoformat(timespec="milliseconds")


def last_part(link: str) -> str:
    """The name at the end of a link or a partial one."""
    return link.rstrip("/").rpartition("/")[2]


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def path_below_version(link: str) -> str:
    """ "projects/..." of a full link, or of a partial one."""
    _, found, after = link.partition("/projects/")
    return f"projects/{after}" if found else link.lstrip("/")


def fingerprint(*texts: str) -> str:
    """Eight bytes in base64, the same for the same contents."""
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def number_for(text: str) -> str:
    """A resource's numeric id: nineteen digits, as text since it does not fit a double."""
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return str(10**18 + value % (8 * 10**18))


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Where a listing goes on and how much it gives. A token is opaque to clients: it says how many pages were given,
    and names the last row of them, so that rows that come and go between pages cost no other row its place."""

    size: int
    number: int
    after: str

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "PageRequest":
        asked = query.get("maxResults", str(MAX_PAGE))
        if not asked.isdigit() or int(asked) > MAX_PAGE:
            raise invalid("maxResults", asked, f"Must be between 0 and {MAX_PAGE}, inclusive.")
        token = query.get("pageToken", "")
        pages, after = _opened(token) if token else (0, "")
        return cls(size=int(asked) or MAX_PAGE, number=pages + 1, after=after)

    def cut(self, rows: Sequence[_Row], key: Callable[[_Row], str]) -> tuple[Sequence[_Row], str]:
        """The rows of this page, of rows sorted by `key`, and the token of the next one, "" for the last."""
        start = bisect_right(rows, self.after, key=key) if self.after else 0
        page = rows[start : start + self.size]
        has_more = start + self.size < len(rows)
        return page, _sealed(self.number, key(page[-1])) if has_more else ""

    def count_off(self, rows: Sequence[_Row]) -> tuple[Sequence[_Row], str]:
        """The same for rows in an order of their own, by their place in it."""
        start = int(self.after or 0) if (self.after or "0").isdigit() else len(rows)
        page = rows[start : start + self.size]
        has_more = start + self.size < len(rows)
        return page, _sealed(self.number, str(start + self.size)) if has_more else ""


def _sealed(pages: int, after: str) -> str:
    return base64.urlsafe_b64encode(f"{pages}|{after}".encode()).decode()


def _opened(token: str) -> tuple[int, str]:
    try:
        pages, _, after = base64.urlsafe_b64decode(token.encode()).decode().partition("|")
        return int(pages), after
    except ValueError as error:
        raise invalid("pageToken", token, "The page token is not valid.") from error
