"""Owns the one place where GitLab's refusals become the contract's errors.

`Operation` says what was tried and which scope or role it needs, so that every text names its remedy. Facts:
specs "GitLab", sections 1.7 (limits), 2.1 to 2.2 (scopes and roles), 3.1 (retry).
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from autoscaler.spi import (
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeUnauthorized,
    ForgeUnavailable,
    RateLimited,
)

_TEXT_LIMIT = 300
_DEFAULT_RETRY_AFTER_S = 60.0


class Absent(ForgeRefused):
    """404: the thing is not there, or this token may not see it. Callers inside this package translate it."""


class Forbidden(ForgeUnauthorized):
    """403: the token is good, but its scope or its user's role is not enough for this."""


class NotRetryable(ForgeRefused):
    """403 of a retry whose text says that the job is not retryable (as opposed to not permitted)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One kind of call: what it does (a verb phrase), what it needs, and the rate family it draws on.

    `is_write`: without an answer nobody knows what it did, and that matters.
    """

    doing: str
    needs: str
    family: str = "core"
    is_write: bool = False
    uses_runner_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An answer that is not 2xx, as the transport saw it. Header names are lower case."""

    status: int
    text: str
    path: str
    headers: dict[str, str]


def translate(refused: Refused, operation: Operation, *, forge: str, now_s: float) -> ForgeError:
    """The contract's error for a refusal. `now_s` is Unix time, for headers that carry instants."""
    said = " ".join(refused.text.split())[:_TEXT_LIMIT]
    what = f"{forge}: could not {operation.doing} ({refused.path}): {refused.status} {said}"
    match refused.status:
        case 401:
            return ForgeUnauthorized(f"{what}; the token is wrong, expired or revoked: renew {_key(operation)}")
        case 403 if "not retryable" in refused.text.lower():
            return NotRetryable(what)
        case 403:
            return Forbidden(f"{what}; {_key(operation)} needs {operation.needs}")
        case 404:
            return Absent(f"{what}; if it exists, {_key(operation)} needs {operation.needs}")
        case 429:
            wait_s = retry_after_s(refused.headers, now_s)
            return RateLimited(f"{what}; again in {wait_s:g} s", retry_after_s=wait_s, family=operation.family)
        case 400 if "maximum number of ci registered" in refused.text.lower():
            return ForgeRefused(f"{what}; delete unused runners there, or have an administrator raise the plan limit")
        case status if status >= 500 and operation.is_write:
            return ForgeOutcomeUnknown(what)
        case status if status >= 500:
            return ForgeUnavailable(what)
    return ForgeRefused(what)


def retry_after_s(headers: dict[str, str], now_s: float) -> float:
    """How long a 429 asks to wait: Retry-After, else the window's reset, else a minute."""
    after = headers.get("retry-after", "")
    if after.isdecimal():
        return float(after)
    reset = headers.get("ratelimit-reset", "")
    if reset.isdecimal():
        return max(1.0, float(reset) - now_s)
    for date in (after, headers.get("ratelimit-resettime", "")):
        try:
            return max(1.0, parsedate_to_datetime(date).timestamp() - now_s)
        except ValueError:
            continue
    return _DEFAULT_RETRY_AFTER_S


def _key(operation: Operation) -> str:
    return "credentials.runner_token" if operation.uses_runner_token else "credentials.token"
