"""Runners at GitHub: JIT registrations, listings, removals. Facts: specs github-rest B5."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from autoscaler.spi import (
    Clock,
    ForgeRefused,
    ForgeRunner,
    Labels,
    NameTaken,
    Registration,
    RunnerBusy,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
    label_set,
)
from runners.github_budgets import REGISTRATION, Budgets
from runners.github_errors import Answer, Purpose, refusal
from runners.github_payloads import JitConfigPayload, RunnerGroupsPagePayload, RunnersPagePayload
from runners.github_rest import Rest, parsed

# Repositories have no runner groups, and in an organisation the default group has this id too.
_DEFAULT_GROUP = 1

_GROUPS_KEPT_S = 600.0
_GROUPS_ASKED_AGAIN_AFTER_S = 30.0


class Runners:
    """Registers, lists and removes the runners of one forge in all its scopes."""

    def __init__(
        self,
        *,
        rest: Rest,
        budgets: Budgets,
        clock: Clock,
        scopes: Mapping[str, Scope],
        runner_prefix: str,
        default_group: str,
    ) -> None:
        self._rest = rest
        self._budgets = budgets
        self._clock = clock
        self._scopes = scopes
        self._prefix = runner_prefix
        self._default_group = default_group
        self._groups: dict[Scope, tuple[float, Mapping[str, int]]] = {}

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        """Mint one JIT registration. Raises NameTaken, RateLimited at once when none is left this minute."""
        purpose = Purpose(does=f"register a runner in {scope}", permission=_permission(scope, "write"), is_write=True)
        group_id = await self._group_id(scope, group or self._default_group)
        self._budgets.admit_mint(purpose)
        answer = await self._rest.call(
            "POST",
            f"{_base(scope)}/generate-jitconfig",
            account=_account(scope),
            purpose=purpose,
            body={"name": name, "runner_group_id": group_id, "labels": list(labels)},
            family=REGISTRATION,
        )
        if answer.status == 409:
            raise NameTaken(f"a runner named {name} exists in {scope}")
        if answer.status != 201:
            self._groups.pop(scope, None)  # Perhaps the group was deleted: ask again next time.
            raise refusal(answer, purpose)
        minted = parsed(JitConfigPayload, answer, purpose)
        return Registration(
            ref=RunnerRef(scope=scope, runner_id=RunnerId(str(minted.runner.id)), name=minted.runner.name),
            kind="github",
            secret=Secret(minted.encoded_jit_config),
        )

    async def list_runners(self) -> Sequence[ForgeRunner]:
        """Every runner of our prefix in every scope, or an error."""
        return [runner for scope in self._scopes.values() for runner in await self._list(scope)]

    async def deregister(self, runner: RunnerRef) -> None:
        """Remove a runner; absent is success. Raises RunnerBusy."""
        purpose = Purpose(
            does=f"remove runner {runner.name} from {runner.scope}",
            permission=_permission(runner.scope, "write"),
            is_write=True,
        )
        answer = await self._rest.call(
            "DELETE",
            f"{_base(runner.scope)}/{quote(runner.runner_id, safe='')}",
            account=_account(runner.scope),
            purpose=purpose,
        )
        if answer.status == 422:
            raise RunnerBusy(f"runner {runner.name} runs a job: {answer.message}")
        if answer.status not in (204, 404):
            raise refusal(answer, purpose)

    async def _list(self, scope: Scope) -> list[ForgeRunner]:
        purpose = Purpose(does=f"list the runners of {scope}", permission=_permission(scope, "read"))

        def read(answer: Answer) -> list[ForgeRunner]:
            return [
                ForgeRunner(
                    ref=RunnerRef(scope=scope, runner_id=RunnerId(str(runner.id)), name=runner.name),
                    labels=label_set([label.name for label in runner.labels]),
                    is_online=runner.status == "online",
                    is_busy=runner.busy,
                )
                for runner in parsed(RunnersPagePayload, answer, purpose).runners
                if runner.name.startswith(self._prefix)
            ]

        pages = await self._rest.pages(
            f"{_base(scope)}?per_page=100", read, account=_account(scope), purpose=purpose, remembered=True
        )
        # A runner that ends while we turn pages moves the others up: the same one may be met twice.
        return list({runner.ref.runner_id: runner for page in pages for runner in page.value}.values())

    async def _group_id(self, scope: Scope, group: str) -> int:
        if not group or "/" in scope:
            return _DEFAULT_GROUP
        listed_at, groups = self._groups.get(scope, (float("-inf"), {}))
        age_s = self._clock.monotonic() - listed_at
        if age_s > _GROUPS_KEPT_S or (group.lower() not in groups and age_s > _GROUPS_ASKED_AGAIN_AFTER_S):
            groups = await self._list_groups(scope)
            self._groups[scope] = (self._clock.monotonic(), groups)
        if group.lower() not in groups:
            known = ", ".join(sorted(groups)) or "none"
            raise ForgeRefused(
                f"{scope} has no runner group {group!r}; it has: {known}. Create it, or change runner_group"
            )
        return groups[group.lower()]

    async def _list_groups(self, scope: Scope) -> Mapping[str, int]:
        purpose = Purpose(does=f"list the runner groups of {scope}", permission=_permission(scope, "read"))
        pages = await self._rest.pages(
            f"/orgs/{scope}/actions/runner-groups?per_page=100",
            lambda answer: parsed(RunnerGroupsPagePayload, answer, purpose).runner_groups,
            account=_account(scope),
            purpose=purpose,
        )
        return {group.name.lower(): group.id for page in pages for group in page.value}


def _base(scope: Scope) -> str:
    return f"/{'repos' if '/' in scope else 'orgs'}/{scope}/actions/runners"


def _account(scope: Scope) -> str:
    return scope.partition("/")[0]


def _permission(scope: Scope, level: str) -> str:
    """What the App's settings page (or a classic token's scope list) calls the permission (specs B10)."""
    if "/" in scope:
        return f"repository permission Administration: {level} (classic token: repo)"
    return f"organization permission Self-hosted runners: {level} (classic token: admin:org)"
