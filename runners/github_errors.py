"""What GitHub's refusals mean, in one place: status, headers and message in, an `spi` error out.

Facts: specs github-rest B5, B7, B9. Texts never carry a header or a credential, only GitHub's own message.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.spi import (
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeUnauthorized,
    ForgeUnavailable,
    RateLimited,
)

_MESSAGE_LIMIT = 300

_RATE_TEXTS = ("rate limit", "abuse detection", "please retry your request again later", "please wait a few minutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer: status, headers by lower-case name, raw body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """GitHub's explanation with the details of its `errors`, shortened; empty where there is none."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(document, dict):
            return ""
        texts = [str(document.get("message") or "")]
        errors = document.get("errors")
        for error in errors if isinstance(errors, list) else []:
            texts.append(
                str(error.get("message") or error.get("code") or "") if isinstance(error, dict) else str(error)
            )
        return "; ".join(text for text in texts if text)[:_MESSAGE_LIMIT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a call is for: the words and the permission that its errors name.

    `permission` is how the GitHub App's settings page calls it, e.g. "repository permission Actions: read".
    """

    does: str
    permission: str
    is_write: bool = False


def is_rate_limit(answer: Answer) -> bool:
    """Whether a 403 or 429 asks for patience and not for permission (specs B9)."""
    if answer.status == 429:
        return True
    if answer.status != 403:
        return False
    if "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0":
        return True
    text = answer.message.lower()
    return any(part in text for part in _RATE_TEXTS)


def refusal(answer: Answer, purpose: Purpose) -> ForgeError:
    """The error for an answer that is no success, no rate limit and nothing the caller knows better."""
    said = f"GitHub refused to {purpose.does}: {answer.status} {answer.message or '(no message)'}"
    match answer.status:
        case 401:
            return ForgeUnauthorized(f"{said}. Renew the token or the App's private key of this forge.")
        case 403 | 404:
            return ForgeUnauthorized(f"{said}. Grant {purpose.permission}, and check that the name exists.")
        case status if status >= 500 or status < 400:  # success, but not the one this call has: not GitHub's answer
            return unanswered(f"{status} {answer.message}".strip(), purpose)
        case _:
            return ForgeRefused(said)


def unanswered(why: str, purpose: Purpose) -> ForgeError:
    """The error for a call without a usable answer: a write may have taken effect."""
    text = f"GitHub did not {purpose.does}: {why}"
    return ForgeOutcomeUnknown(text) if purpose.is_write else ForgeUnavailable(text)


def rate_limited(purpose: Purpose, *, retry_after_s: float, family: str, why: str) -> RateLimited:
    text = f"GitHub's rate limit: cannot {purpose.does} for {retry_after_s:.0f} s ({why})"
    return RateLimited(text, retry_after_s=retry_after_s, family=family)
