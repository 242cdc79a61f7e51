"""Failed webhook deliveries: found and sent again, since GitHub never does so by itself (specs github-rest B3, B4).

With an App its one hook is asked. With a token the hooks of our scopes are: those with the configured id or URL, or
whose URL ends in /webhooks/NAME of this forge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
from pydantic import TypeAdapter, ValidationError

from autoscaler.spi import Clock, ForgeName, ForgeUnauthorized, Recovery, Scope
from runners.github_auth import Auth
from runners.github_errors import Answer, Purpose, refusal, unanswered
from runners.github_payloads import DeliveryPayload, HookPayload
from runners.github_rest import Rest
from runners.github_settings import Options

_log = structlog.get_logger(__name__)

# How long github.com can redeliver; GHES can for 7 days.
_WINDOW = timedelta(days=3)
# A delivery that we refuse each time is not asked for for ever.
_ATTEMPTS = 5
# Writes should be spaced and content creation is limited to 80 a minute: the rest waits for the next call.
_AT_ONCE = 60
_PAGES = 200
_HOOKS_KEPT_S = 3600.0
_EVENTS = frozenset({"workflow_job", "workflow_run"})

_DELIVERY_LIST = TypeAdapter(list[DeliveryPayload])
_HOOK_LIST = TypeAdapter(list[HookPayload])

P = TypeVar("P", DeliveryPayload, HookPayload)


@dataclass(frozen=True, slots=True)
class _Hook:
    """Where a hook's deliveries are listed, and for whose account ("" is the App)."""

    path: str
    account: str


class Deliveries:
    """Finds and redelivers the failed deliveries of one forge's hooks."""

    def __init__(
        self, *, forge: ForgeName, rest: Rest, auth: Auth, clock: Clock, scopes: Mapping[str, Scope], options: Options
    ) -> None:
        self._forge = forge
        self._rest = rest
        self._auth = auth
        self._clock = clock
        self._scopes = scopes
        self._options = options
        self._hooks: tuple[_Hook, ...] = ()
        self._hooks_listed_at = float("-inf")
        self._asked: dict[str, int] = {}
        self._is_warned = False

    async def recover(self, since: datetime) -> Recovery:
        """Redeliver what failed since then and was not delivered by a later attempt.

        Without the permission to read deliveries nothing is recovered and nothing claimed; polling still finds every
        job, so that is a warning and no fault of the forge.
        """
        try:
            recovery = await self._recover(since)
        except ForgeUnauthorized as error:
            if not self._is_warned:
                _log.warning("github_deliveries_not_readable", forge=self._forge, error=str(error))
            self._is_warned = True
            return Recovery(failed=0, redelivered=0, complete_until=since)
        self._is_warned = False
        return recovery

    async def _recover(self, since: datetime) -> Recovery:
        now = self._clock.now()
        since = max(since, now - _WINDOW)
        failed, redelivered, complete_until = 0, 0, now
        for hook in await self._found_hooks():
            undelivered = await self._undelivered(hook, since)
            failed += len(undelivered)
            for delivery in undelivered:
                if redelivered == _AT_ONCE:
                    complete_until = min(complete_until, delivery.delivered_at)
                    break
                redelivered += await self._redeliver(hook, delivery)
        return Recovery(failed=failed, redelivered=redelivered, complete_until=complete_until)

    async def _undelivered(self, hook: _Hook, since: datetime) -> list[DeliveryPayload]:
        """The newest attempt of each delivery that no attempt brought through, oldest first."""
        purpose = Purpose(does="list webhook deliveries", permission=_permission(hook))
        newest: dict[str, DeliveryPayload] = {}
        delivered: set[str] = set()
        url = f"{hook.path}/deliveries?per_page=100"
        for _ in range(_PAGES):
            page, url = await self._rest.page(
                url, lambda answer: _listed(_DELIVERY_LIST, answer, purpose), account=hook.account, purpose=purpose
            )
            for delivery in page.value:
                if delivery.event in _EVENTS and delivery.delivered_at >= since:
                    newest.setdefault(delivery.guid, delivery)
                    if delivery.is_delivered:
                        delivered.add(delivery.guid)
            if not url or (page.value and page.value[-1].delivered_at < since):
                break
        lost = [delivery for guid, delivery in newest.items() if guid not in delivered]
        self._asked = {guid: count for guid, count in self._asked.items() if guid in newest}
        return sorted(
            (delivery for delivery in lost if self._asked.get(delivery.guid, 0) < _ATTEMPTS),
            key=lambda delivery: delivery.delivered_at,
        )

    async def _redeliver(self, hook: _Hook, delivery: DeliveryPayload) -> bool:
        purpose = Purpose(does="redeliver a webhook", permission=_permission(hook), is_write=True)
        self._asked[delivery.guid] = self._asked.get(delivery.guid, 0) + 1
        answer = await self._rest.call(
            "POST", f"{hook.path}/deliveries/{delivery.id}/attempts", account=hook.account, purpose=purpose, body={}
        )
        if answer.status in (400, 404, 422):  # Too old or gone: polling has to do.
            return False
        if answer.status != 202:
            raise refusal(answer, purpose)
        return True

    async def _found_hooks(self) -> tuple[_Hook, ...]:
        if self._auth.is_app:
            return (_Hook("/app/hook", ""),)
        now = self._clock.monotonic()
        if now - self._hooks_listed_at >= _HOOKS_KEPT_S:
            self._hooks = tuple([hook for scope in self._scopes.values() for hook in await self._hooks_of(scope)])
            self._hooks_listed_at = now
        return self._hooks

    async def _hooks_of(self, scope: Scope) -> list[_Hook]:
        base = f"/{'repos' if '/' in scope else 'orgs'}/{scope}/hooks"
        account = scope.partition("/")[0]
        purpose = Purpose(does=f"list the webhooks of {scope}", permission=_permission(_Hook(base, account)))
        pages = await self._rest.pages(
            f"{base}?per_page=100",
            lambda answer: _listed(_HOOK_LIST, answer, purpose),
            account=account,
            purpose=purpose,
        )
        return [_Hook(f"{base}/{hook.id}", account) for page in pages for hook in page.value if self._is_ours(hook)]

    def _is_ours(self, hook: HookPayload) -> bool:
        if self._options.hook_id is not None:
            return hook.id == self._options.hook_id
        if self._options.webhook_url:
            return hook.config.url == self._options.webhook_url
        return urlsplit(hook.config.url).path.rstrip("/").endswith(f"/webhooks/{self._forge}")


def _listed(adapter: TypeAdapter[list[P]], answer: Answer, purpose: Purpose) -> list[P]:
    """A JSON array of payloads."""
    try:
        return adapter.validate_json(answer.body)
    except ValidationError:
        raise unanswered(f"unreadable answer {answer.status}", purpose) from None


def _permission(hook: _Hook) -> str:
    if not hook.account:
        return "the App itself (its own private key)"
    kind = "repository" if hook.path.startswith("/repos/") else "organization"
    return f"{kind} permission Webhooks: write (classic token: {'repo' if kind == 'repository' else 'admin:org_hook'})"
