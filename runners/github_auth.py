"""Who we are at GitHub: a plain token, or a GitHub App with one installation per account.

Owns tokens and their renewal; PyGithub signs the App's JWTs and mints installation tokens, in a gate of one thread
because its sessions are not safe to share. No token leaves this module except as an Authorization header.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import requests
from github import GithubException, GithubIntegration
from github.Auth import AppAuth

from autoscaler.spi import (
    Clock,
    ForgeError,
    ForgeUnauthorized,
    ForgeUnavailable,
    Gate,
    Scope,
    Secret,
    SettingsError,
)
from runners.github_errors import Answer, Purpose, is_rate_limit, rate_limited, refusal
from runners.github_settings import AppCredentials

API_VERSION = "2022-11-28"
USER_AGENT = "ci-runner-autoscaler"

_SDK_TIMEOUT_S = 10
_CALL_TIMEOUT_S = 15.0

# Installation tokens live an hour: renewed early enough that no call starts with one about to end.
_RENEW_BEFORE = timedelta(minutes=5)
# A JWT may live 10 minutes and is signed for less, so that clocks may differ.
_JWT_LIFETIME_S = 480
_JWT_USED_FOR = timedelta(seconds=_JWT_LIFETIME_S - 180)

_SIGN_IN = Purpose(
    does="sign in as the App", permission="the App an installation in this organisation or repository", is_write=False
)

T = TypeVar("T")


class Auth(Protocol):
    """Authorization headers. `account` is an owner: an organisation or a user."""

    @property
    def is_app(self) -> bool: ...

    async def header(self, account: str) -> str:
        """The header for calls on the account's resources."""
        ...

    async def app_header(self) -> str:
        """The header for calls on the App itself."""
        ...

    def forget(self, account: str) -> bool:
        """Drop the account's token after a 401; whether a new one can be had."""
        ...

    def permissions_of(self, account: str) -> Mapping[str, str] | None:
        """What an App was granted, as its newest token of this account says; None where nobody says."""
        ...

    def wrote(self, app_id: int, client_id: str | None) -> bool:
        """Whether that App is the one that we are."""
        ...

    def budget_of(self, account: str) -> str:
        """Whose primary rate limit a call for this account draws on."""
        ...

    async def aclose(self) -> None: ...


class TokenAuth:
    """One token for everything."""

    is_app = False

    def __init__(self, token: Secret) -> None:
        self._token = token

    async def header(self, account: str) -> str:
        return f"Bearer {self._token.reveal()}"

    async def app_header(self) -> str:
        raise ForgeUnauthorized("a token cannot act as a GitHub App: configure app_id and private_key")

    def forget(self, account: str) -> bool:
        return False

    def permissions_of(self, account: str) -> Mapping[str, str] | None:
        return None

    def wrote(self, app_id: int, client_id: str | None) -> bool:
        return False

    def budget_of(self, account: str) -> str:
        return "token"

    async def aclose(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Held:
    secret: Secret
    renew_at: datetime


class AppAuthenticator:
    """A GitHub App. Tokens are minted when first needed, one at a time for an account, and renewed before they end."""

    is_app = True

    def __init__(
        self, credentials: AppCredentials, *, api_url: str, scopes: Collection[Scope], clock: Clock, gate: Gate
    ) -> None:
        self._clock = clock
        self._gate = gate
        self._scopes = tuple(scopes)
        self._installations: dict[str, int] = {}
        self._only_installation = credentials.installation_id
        self._held: dict[str, _Held] = {}
        self._permissions: dict[str, Mapping[str, str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._app_id = credentials.app_id
        self._app = AppAuth(credentials.app_id, credentials.private_key.reveal(), jwt_expiry=_JWT_LIFETIME_S)
        try:
            self._app.create_jwt()
        except Exception:  # The library's text may quote the key.
            raise SettingsError(
                "cannot sign with this key; is it the App's whole PEM file?", key="credentials.private_key"
            ) from None
        self._integration = GithubIntegration(
            auth=self._app,
            base_url=api_url,
            timeout=_SDK_TIMEOUT_S,
            user_agent=USER_AGENT,
            retry=0,
            seconds_between_requests=0,
            seconds_between_writes=0,
            api_version=API_VERSION,
        )

    async def header(self, account: str) -> str:
        key = account.lower()
        return f"Bearer {(await self._fresh(key, lambda: self._mint(key))).reveal()}"

    async def app_header(self) -> str:
        return f"Bearer {(await self._fresh('', self._sign)).reveal()}"

    def forget(self, account: str) -> bool:
        self._installations.pop(account.lower(), None)
        return self._held.pop(account.lower(), None) is not None

    def permissions_of(self, account: str) -> Mapping[str, str] | None:
        return self._permissions.get(account.lower())

    def wrote(self, app_id: int, client_id: str | None) -> bool:
        return self._app_id in (str(app_id), client_id)

    def budget_of(self, account: str) -> str:
        return account.lower()

    async def aclose(self) -> None:
        self._held.clear()
        self._integration.close()

    async def _fresh(self, key: str, renew: Callable[[], Awaitable[_Held]]) -> Secret:
        """The held secret, renewed by the first caller that finds it old while the others wait."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            held = self._held.get(key)
            if held is None or held.renew_at <= self._clock.now():
                held = self._held[key] = await renew()
            return held.secret

    async def _sign(self) -> _Held:
        jwt: str = await self._gate.call(self._app.create_jwt, timeout_s=_CALL_TIMEOUT_S)
        return _Held(Secret(jwt), self._clock.now() + _JWT_USED_FOR)

    async def _mint(self, account: str) -> _Held:
        def blocking() -> tuple[str, datetime, Mapping[str, str]]:
            answer = self._integration.get_access_token(self._installation_of(account))
            return answer.token, answer.expires_at, dict(answer.permissions or {})

        token, expires_at, self._permissions[account] = await self._ask(blocking)
        if expires_at.tzinfo is None:
            expires_at = expires_at.replace(tzinfo=UTC)
        return _Held(Secret(token), expires_at - _RENEW_BEFORE)

    def _installation_of(self, account: str) -> int:
        """The account's installation id, looked up once. Runs in the gate's thread."""
        if self._only_installation is not None:
            return self._only_installation
        if account not in self._installations:
            mine = [scope for scope in self._scopes if scope.lower().partition("/")[0] == account]
            if any("/" not in scope for scope in mine) or not mine:
                found = self._integration.get_org_installation(account)
            else:
                found = self._integration.get_repo_installation(*mine[0].split("/"))
            self._installations[account] = found.id
        return self._installations[account]

    async def _ask(self, blocking: Callable[[], T]) -> T:
        try:
            result: T = await self._gate.call(blocking, timeout_s=_CALL_TIMEOUT_S)
        except (
            GithubException,
            requests.RequestException,
            TimeoutError,
            ValueError,
            TypeError,
            AssertionError,
        ) as error:
            raise _translated(error) from None
        return result


def _translated(error: Exception) -> ForgeError:
    """PyGithub's exceptions as ours. Minting a token changes nothing that matters, so nothing is unknown after it."""
    if not isinstance(error, GithubException):
        return ForgeUnavailable(f"GitHub did not {_SIGN_IN.does}: {type(error).__name__}")
    headers = {name.lower(): str(value) for name, value in (error.headers or {}).items()}
    answer = Answer(status=error.status, headers=headers, body=json.dumps(error.data, default=str).encode())
    if is_rate_limit(answer):
        wait_s = headers.get("retry-after", "")
        seconds = float(wait_s) if wait_s.isdigit() else 60.0
        return rate_limited(_SIGN_IN, retry_after_s=seconds, family="core", why="signing in")
    return refusal(answer, _SIGN_IN)
