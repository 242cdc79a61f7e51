"""Owns what the configured scopes are: group or project, their ids, and the projects inside groups.

`ScopeMap.scope_of` is pure; resolving asks GitLab once per scope and keeps the id, which survives renames.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import quote

from autoscaler.spi import Clock, ForgeRefused, ForgeUnavailable, RateLimited, Scope
from runners.gitlab_errors import Absent, Operation
from runners.gitlab_rest import Rest, Row
from runners.gitlab_times import parse_instant

_RESOLVE = Operation(doing="look up a scope", needs="scope api and the role Reporter there")
_PROJECTS = Operation(doing="list a group's projects", needs="scope api and the role Reporter in the group")

PROJECTS_KEPT_FOR = timedelta(minutes=1)
"""A call for each hundred projects: with 2,000 projects one percent of the budget."""
RECENT = timedelta(hours=25)
"""GitLab updates `last_activity_at` once an hour at most: a day, and that hour."""


class ScopeKind(StrEnum):
    GROUP = "group"
    PROJECT = "project"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A scope as the API addresses it. `full_path` is GitLab's own spelling of it."""

    scope: Scope
    kind: ScopeKind
    id: int
    full_path: str

    @property
    def path(self) -> str:
        return f"/{self.kind}s/{self.id}"

    @property
    def runner_type(self) -> str:
        return f"{self.kind}_type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Projects:
    """Paths of the projects in scope, those with recent activity apart."""

    recent: tuple[str, ...]
    quiet: tuple[str, ...]


def project_path(repo: str) -> str:
    """The API path of a project named by its full path."""
    return f"/projects/{quote(repo, safe='')}"


class ScopeMap:
    """The configured scopes of one forge."""

    def __init__(self, scopes: tuple[Scope, ...], rest: Rest, clock: Clock) -> None:
        self.scopes = scopes
        self._rest = rest
        self._clock = clock
        self._targets: dict[Scope, Target] = {}
        self._projects: Projects | None = None
        self._projects_until = datetime.min.replace(tzinfo=clock.now().tzinfo)
        self._lock = asyncio.Lock()
        # Longest path first: the most specific scope wins. GitLab matches paths without case.
        self._by_path = sorted(((scope.lower(), scope) for scope in scopes), key=lambda pair: (-len(pair[0]), pair[0]))

    def scope_of(self, repo: str) -> Scope | None:
        """The most specific configured scope that contains a project, None where there is none."""
        path = repo.lower()
        for prefix, scope in self._by_path:
            if path == prefix or path.startswith(f"{prefix}/"):
                return scope
        return None

    async def target(self, scope: Scope) -> Target:
        """Group or project, and its id. Raises ForgeRefused where it is neither."""
        if scope not in self._targets:
            self._targets[scope] = await self._resolve(scope)
        return self._targets[scope]

    async def targets(self) -> list[Target]:
        """Every scope, outermost first."""
        return [await self.target(scope) for scope in sorted(self.scopes, key=lambda scope: (scope.count("/"), scope))]

    async def projects(self) -> Projects:
        """The projects of all scopes; looked up again after some minutes."""
        async with self._lock:
            if self._projects is not None and self._clock.now() < self._projects_until:
                return self._projects
            try:
                self._projects = await self._list_projects()
                self._projects_until = self._clock.now() + PROJECTS_KEPT_FOR
            except (ForgeUnavailable, RateLimited):
                # The last list is better than none; asked again at the next call.
                if self._projects is None:
                    raise
            return self._projects

    async def _resolve(self, scope: Scope) -> Target:
        # A group never has the path of a project; without a slash it cannot be a project.
        kinds = [ScopeKind.PROJECT, ScopeKind.GROUP] if "/" in scope else [ScopeKind.GROUP]
        for kind in kinds:
            query = {"with_projects": "false"} if kind is ScopeKind.GROUP else None
            try:
                row = await self._rest.get(f"/{kind}s/{quote(scope, safe='')}", _RESOLVE, query)
            except Absent:
                continue
            if not isinstance(row.get("id"), int):
                raise ForgeUnavailable(f"{self._rest.name}: the answer for scope {scope!r} has no id")
            full_path = row.get("path_with_namespace") or row.get("full_path") or scope
            return Target(scope=scope, kind=kind, id=row["id"], full_path=str(full_path))
        raise ForgeRefused(
            f"{self._rest.name}: scope {scope!r} is neither a group nor a project that credentials.token can see: "
            "correct scopes, or give the token's user the role Maintainer (project) or Owner (group) there"
        )

    async def _known_targets(self) -> list[Target]:
        """The scopes that GitLab knows: a wrong one must not stop the others. Raises where it knows none."""
        known, refusals = [], []
        for scope in self.scopes:
            try:
                known.append(await self.target(scope))
            except ForgeRefused as refusal:
                refusals.append(refusal)
        if refusals and not known:
            raise refusals[0]
        return known

    async def _list_projects(self) -> Projects:
        since = self._clock.now() - RECENT
        is_recent: dict[str, bool] = {}
        for target in await self._known_targets():
            if target.kind is ScopeKind.PROJECT:
                is_recent[target.full_path] = True
                continue
            query = {"include_subgroups": "true", "archived": "false", "simple": "true", "order_by": "id"}
            for row in await self._rest.list(f"{target.path}/projects", _PROJECTS, query):
                if isinstance(row.get("path_with_namespace"), str):
                    is_recent.setdefault(row["path_with_namespace"], _was_active(row, since))
        return Projects(
            recent=tuple(sorted(path for path, recent in is_recent.items() if recent)),
            quiet=tuple(sorted(path for path, recent in is_recent.items() if not recent)),
        )


def _was_active(row: Row, since: datetime) -> bool:
    active_at = parse_instant(row.get("last_activity_at"))
    return active_at is None or active_at >= since
